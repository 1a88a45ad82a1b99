"""The weights of FID's Inception, as pytorch-fid and torch-fidelity publish them.

Theirs carry the licence of TensorFlow's models, Apache 2.0. Nothing is downloaded: give the file
`pt_inception-2015-12-05-6726825d.pth`, or the same tensors as safetensors.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from cm3jax.errors import UserError
from cm3jax.evaluate.inception_network import SIZE, Inception
from cm3jax.interop.layout import Key
from cm3jax.interop.state_dicts import read_state_dict
from cm3jax.io import safetensors_file as tensors
from cm3jax.io.files import digest, sweep_scratch
from cm3jax.io.folders import hold

_FIRST = "Conv2d_1a_3x3.conv.weight"
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The classifier behind the features, and counters of batches.
_IDLE = "fc."
_CLASSES = 1008
"""What TensorFlow's network of 2015 tells apart."""
_COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class InceptionWeights:
    """Imported weights."""

    width: int
    """The network's width, 32 unless it is a toy."""
    variables: dict[str, Any]
    used: tuple[str, ...]
    """Names of the tensors that became parameters, in the file's spelling."""
    unused: tuple[str, ...]
    """Names of tensors that features do not need."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Fingerprint of every tensor in use."""
        tensors = to_tensors(self.variables)
        return digest(*(part for name in self.used for part in (name, tensors[name])))


def load_inception(path: str | Path) -> InceptionWeights:
    """Read a `.safetensors`, or a `.pth` with torch's help.

    Raises `UserError` for a file that cannot be read, and for tensors that are missing, unknown or
    of another shape.
    """
    found = read_state_dict(Path(path), "the weights of FID's Inception")
    return from_tensors({name: tensor.read(...) for name, tensor in found.items()}, str(path))


def convert_inception(source: Path, out: Path) -> list[Key]:
    """Write the tensors in use as safetensors, which `load_inception` reads without torch.

    Returns the report: what became of each tensor. Raises `UserError` as `load_inception`.
    """
    if out.exists():
        raise UserError(f"{out} exists; give another --out, or remove it first.")
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must be named *.safetensors, which is what is written.")
    weights = load_inception(source)
    found = {name: tensors.whole(array) for name, array in to_tensors(weights.variables).items()}
    with hold(out, "converting weights"):
        sweep_scratch(out.parent, re.escape(out.name))
        tensors.write_file(out, found, {"format": "pt"})
    ours = {_name(path): "/".join(path) for path in _parameters(weights.width)}
    used = [Key(name, "F32", found[name].shape, ours[name]) for name in weights.used]
    return used + [Key(name, "", (), "(not of the features)") for name in weights.unused]


def from_tensors(tensors: Mapping[str, np.ndarray], where: str) -> InceptionWeights:
    """The parameters in a state dict; `where` names it in errors, which are as `load_inception`."""
    if _FIRST not in tensors or tensors[_FIRST].ndim != 4:
        raise UserError(
            f"{where} holds no {_FIRST}; give the weights of pytorch-fid's or torch-fidelity's "
            "Inception."
        )
    _require_fid(tensors, where)
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


def _require_fid(tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse torchvision's Inception: the same names, another network, and another FID."""
    classes = tensors["fc.bias"].shape if "fc.bias" in tensors else (_CLASSES,)
    if classes != (_CLASSES,) or any(name.startswith("AuxLogits.") for name in tensors):
        raise UserError(
            f"{where} is not FID's network: it has an auxiliary head or other than {_CLASSES} "
            "classes, as torchvision's Inception; give the weights of pytorch-fid's or "
            "torch-fidelity's."
        )


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
    """Their name of our variable at `path`, which begins with the collection."""
    _, *modules, leaf = path
    return ".".join([*modules, _LEAVES[leaf]])


def _theirs_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Kernels are (y, x, in, out) here, (out, in, y, x) there."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape


def _ours(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def _theirs(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
