"""The weights of FID's Inception, as pytorch-fid and torch-fidelity publish them.

Theirs carry the licence of TensorFlow's models, Apache 2.0. Nothing is downloaded: give the file
`pt_inception-2015-12-05-6726825d.pth`, or the same tensors as safetensors.
"""

import dataclasses
import functools
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from cm3jax.errors import UserError
from cm3jax.files import digest
from cm3jax.model.inception import SIZE, Inception

_FIRST = "Conv2d_1a_3x3.conv.weight"
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The classifier behind the features, a head that only training has, and counters of batches.
_IDLE = ("fc.", "AuxLogits.")
_COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class InceptionWeights:
    """Imported weights."""

    width: int
    """Of the network, 32 unless it is a toy."""
    variables: dict[str, Any]
    used: tuple[str, ...]
    """Names of the tensors that became parameters, in the file's spelling."""
    unused: tuple[str, ...]
    """Names of tensors that features do not need."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of every tensor in use."""
        tensors = to_tensors(self.variables)
        return digest(*(part for name in self.used for part in (name, tensors[name])))


def load_inception(path: str | Path) -> InceptionWeights:
    """Read a `.safetensors`, or a `.pth` with torch's help.

    Raises `UserError` for a file that cannot be read, and for tensors that are missing, unknown or
    of another shape.
    """
    return from_tensors(_read(Path(path)), str(path))


def from_tensors(tensors: Mapping[str, np.ndarray], where: str) -> InceptionWeights:
    """The parameters in a state dict; `where` names it in errors, which are as `load_inception`."""
    if _FIRST not in tensors or tensors[_FIRST].ndim != 4:
        raise UserError(
            f"{where} holds no {_FIRST}; give the weights of pytorch-fid's or torch-fidelity's "
            "Inception."
        )
    width = len(tensors[_FIRST])
    wanted = shapes(width)
    unused = {n for n in tensors if n.startswith(_IDLE) or n.endswith(_COUNTER)}
    missing = sorted(wanted.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - wanted.keys() - unused)
    wrong = [n for n, shape in wanted.items() if n in tensors and tensors[n].shape != shape]
    for fault, names in (("lacks", missing), ("has unknown", unknown), ("misshapes", wrong)):
        if names:
            raise UserError(
                f"{where} {fault} {len(names)} tensors, {names[0]} first; give the weights of "
                "pytorch-fid's or torch-fidelity's Inception."
            )
    flat = {
        path: _ours(np.asarray(tensors[_name(path)], np.float32)) for path in _parameters(width)
    }
    variables = flax.traverse_util.unflatten_dict(flat)
    return InceptionWeights(width, variables, tuple(sorted(wanted)), tuple(sorted(unused)))


def to_tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters under their names."""
    flat = flax.traverse_util.flatten_dict(variables)
    return {_name(path): _theirs(np.asarray(leaf)) for path, leaf in flat.items()}


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a network of this width, by name."""
    return {_name(path): _theirs_of(shape) for path, shape in _parameters(width).items()}


@functools.cache
def _parameters(width: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of our variables, by path."""
    pixels = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    found = jax.eval_shape(Inception(width).init, jax.random.key(0), pixels)
    return {p: leaf.shape for p, leaf in flax.traverse_util.flatten_dict(found).items()}


def _name(path: tuple[str, ...]) -> str:
    """Their name of what lies at `path` of our variables, the collection first."""
    _, *modules, leaf = path
    return ".".join([*modules, _LEAVES[leaf]])


def _theirs_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Kernels are (y, x, in, out) here, (out, in, y, x) there."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape


def _ours(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def _theirs(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _read(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"the Inception weights are missing: {path} does not exist.")
    if path.suffix == ".safetensors":
        import safetensors.numpy
        from safetensors import SafetensorError

        try:
            return safetensors.numpy.load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no whole safetensors file ({error}).") from None
    return _read_torch(path)


def _read_torch(path: Path) -> Mapping[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is torch's own format, and torch is not installed; install it, or give the "
            "tensors as .safetensors."
        ) from None
    import pickle

    try:
        found = torch.load(os.fspath(path), map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in found.items()}
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        AttributeError,
    ) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} holds no plain tensors ({reason}); give another file.") from None
