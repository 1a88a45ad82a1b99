"""Foreign folders: their JSON, their sharded tensors, and a conversion that is whole or nothing."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.interop.layout import Key
from cm3jax.interop.state_dicts import read_state_dict
from cm3jax.io import safetensors_file
from cm3jax.io.files import read_json, write_atomic, write_json
from cm3jax.io.folders import hold, scratch, sweep
from cm3jax.io.paths import files_below

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TORCH = "pytorch_model.bin"
"""What older folders have instead."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WRITTEN = re.compile(
    r"((text|vqgan|clip)/)?\.{0,2}"
    r"(params\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|"
    r"(tokenizer_|preprocessor_)?config\.json|import\.json|tokenizer\.json|text\.model|report\.txt)"
    r"(\.new)?(\.[0-9a-f]+\.part)?"
    r"|\.(text|vqgan|clip)\.lock"
)
"""Names of the files of a conversion, of half a file, and of the locks of its parts."""
_FILE_BYTES = 5 << 30
"""A file of an export is closed before it becomes larger than this."""


def read_object(path: Path, what: str) -> dict[str, Any]:
    """A file that must hold one JSON object."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; get {what} again.")
    return value


def find(source: str) -> Path:
    """A model's folder: `source` itself or, for a hub id `OWNER/NAME`, its folder in the cache of
    huggingface_hub, which downloads what is missing there.

    Raises `UserError` if there is neither, e.g. offline.
    """
    if Path(source).is_dir():
        return Path(source)
    if not _HUB_ID.fullmatch(source) or Path(source).exists():
        raise UserError(f"{source} is no folder; give the one with the weights, or the hub's id.")
    import huggingface_hub

    parts = ["*.json", "*.txt", "*.safetensors"]
    try:
        folder = Path(huggingface_hub.snapshot_download(source, allow_patterns=parts))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(source, allow_patterns=[_TORCH]))
    except Exception as error:  # of the network, the hub, its permissions
        raise UserError(
            f"{source} is no folder here, and neither the hub nor its cache gave a model of that "
            f"id ({type(error).__name__}); check the id, the network and `hf auth login`, or "
            "download it elsewhere and give its folder."
        ) from None
    return folder


def read_tensors(folder: Path) -> dict[str, safetensors_file.Tensor]:
    """The tensors of a folder by name, of all its files; none is in memory yet.

    As in transformers, one whole file goes before an index, which may be left over from shards.

    Raises `UserError` when there are none, when an index and the files disagree, and for pickles
    that hold more than tensors or come in several files.
    """
    if (folder / _SINGLE).exists():
        return safetensors_file.read_file(folder / _SINGLE)
    if (folder / _INDEX).exists():
        return _read_indexed(folder)
    if (folder / _TORCH).exists():
        return read_state_dict(folder / _TORCH, "the weights")
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt")]
    if pickles:
        raise UserError(
            f"{folder} holds pickled weights ({pickles[0].name}), which could run code and are not "
            f"read; save them as safetensors first, or only the tensors as {_TORCH}."
        )
    raise UserError(f"{folder} holds neither {_SINGLE} nor {_INDEX}; give a folder with weights.")


def _read_indexed(folder: Path) -> dict[str, safetensors_file.Tensor]:
    index = read_object(folder / _INDEX, "the index of the weights").get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(f"{folder / _INDEX} has no weight_map of file names; get it again.")
    found: dict[str, safetensors_file.Tensor] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name or not name:
            raise UserError(
                f"{folder / _INDEX} names {name!r}, which is no file of this folder; get it again."
            )
        here = safetensors_file.read_file(folder / name)
        listed = {key for key, file in index.items() if file == name}
        if here.keys() != listed:
            key = min(here.keys() ^ listed)
            raise UserError(
                f"{folder / _INDEX} and {name} disagree about {key}; get the weights again."
            )
        found |= here
    return found


def write_tensors(folder: Path, outputs: Mapping[str, safetensors_file.Output]) -> None:
    """Write tensors in files of a few GB with their index, as transformers does."""
    groups: list[dict[str, safetensors_file.Output]] = [{}]
    for key, output in outputs.items():
        if groups[-1] and sum(o.size for o in groups[-1].values()) + output.size > _FILE_BYTES:
            groups.append({})
        groups[-1][key] = output
    if len(groups) == 1:
        safetensors_file.write_file(folder / _SINGLE, groups[0], {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        safetensors_file.write_file(folder / name, group, {"format": "pt"})
        weight_map |= dict.fromkeys(group, name)
    total = sum(output.size for output in outputs.values())
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` on success and vanishes on failure. What a killed
    conversion left is deleted by the next one to the same `out`.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} exists; give another --out, or remove it first.")
    with hold(out, "converting weights"):
        sweep(out, _converted, r"(\d+\.)?part")  # earlier versions named it by the process's id
        folder = Path(scratch(out, "part"))  # the same for all, so that its lock is found again
        if os.path.lexists(folder):
            raise UserError(f"{folder} is in the way, and no conversion's; move it away.")
        folder.mkdir(parents=True)
        try:
            yield folder
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _converted(folder: epath.Path) -> list[str] | None:
    """The files in a folder that a conversion was killed in; None if it has any other: a
    `config.json` may be anybody's."""
    names = sorted(files_below(folder))
    return names if names and all(map(_WRITTEN.fullmatch, names)) else None


def write_tensor_report(folder: Path, report: Sequence[Key]) -> None:
    """`report.txt`: a line per tensor, with its type, its shape and what it is here."""
    rows = [(key.key, key.type, "x".join(map(str, key.shape)), key.ours) for key in report]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    write_atomic(folder / "report.txt", "\n".join(lines) + "\n")
