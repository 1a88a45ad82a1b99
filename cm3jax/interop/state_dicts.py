"""One file of foreign tensors: safetensors, or what torch saves, which takes torch to read."""

import zipfile
from pathlib import Path
from typing import Any

from cm3jax.errors import UserError
from cm3jax.io import safetensors_file


def read_state_dict(path: Path, what: str) -> dict[str, safetensors_file.Tensor]:
    """The tensors of a file by name; for a torch checkpoint, those of its `state_dict`.

    Nothing but tensors is unpickled, in torch's format of today and that of before 1.6. Raises
    `UserError` for a file that is missing (called `what`), is damaged or holds more than tensors,
    and for torch's where torch is not installed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give {what}.")
    if path.suffix == ".safetensors":
        return safetensors_file.read_file(path)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a torch checkpoint and torch is not installed; install torch, or save the "
            "weights as safetensors."
        ) from None
    try:
        mapped = zipfile.is_zipfile(path)  # torch maps no file of its older format
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:  # whatever a file that is not a checkpoint makes torch raise
        raise UserError(
            f"{path} is damaged, or holds more than tensors, which could run code and is not read; "
            "save only its state_dict."
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    found = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise UserError(f"{path} holds no state_dict; give {what}.")
    return {key: _tensor(value) for key, value in found.items()}


def _tensor(value: Any) -> safetensors_file.Tensor:
    """A tensor of torch, which numpy is given as float32."""
    kind = "F32" if value.is_floating_point() else "I32"
    return safetensors_file.Tensor(
        kind, tuple(value.shape), lambda index: value.float().numpy()[index]
    )
