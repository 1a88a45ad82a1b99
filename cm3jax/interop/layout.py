"""How an array of ours is stored in a foreign checkpoint, both ways, bit for bit.

A checkpoint holds one tensor per layer where ours is stacked, and matrices that map from the right.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from cm3jax.errors import UserError
from cm3jax.io.safetensors_file import Output, Tensor

ArrayKind = Literal["same", "matrix", "convolution", "heads"]
_FLOATS = ("F32", "BF16", "F16")


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """The place of one array of ours in a foreign checkpoint."""

    path: str
    """Our name, `params/layers/query/kernel`."""
    shape: tuple[int, ...]
    """Our shape, the axis of layers included."""
    keys: tuple[str, ...]
    """The name there, or one per layer."""
    kind: ArrayKind = "same"
    """`matrix`: [in..., out] or [in, out...] here, [out, in] there. `convolution`: [Y, X, in, out],
    or [in, out] for one pixel, here; [out, in, Y, X] there. `heads`: a row per head, or one row for
    all heads there."""
    inputs: int = 1
    """Leading axes of a layer's matrix that are its inputs."""
    rows: np.ndarray | None = None
    """Their rows by ours, where the order differs."""
    stacked: bool = False
    """Whether the first axis is that of layers."""

    @property
    def layer(self) -> tuple[int, ...]:
        """Our shape of what one key holds."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def foreign_shapes(self) -> list[tuple[int, ...]]:
        """The shapes that a key may have there, the usual one first."""
        layer = self.layer
        match self.kind:
            case "matrix":
                return [(math.prod(layer[self.inputs :]), math.prod(layer[: self.inputs]))]
            case "convolution":
                *window, into, out = layer
                return [(out, into, *(window or (1, 1)))]
            case "heads":
                return [layer, (1, *layer[1:])]
        return [layer]

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """What a key holds as our layer."""
        match self.kind:
            case "matrix":
                return tensor.T.reshape(self.layer)
            case "convolution":
                return tensor.transpose(2, 3, 1, 0).reshape(self.layer)
            case "heads":
                return np.broadcast_to(tensor, self.layer)
        return tensor if self.rows is None else tensor[self.rows]

    def to_foreign(self, layer: np.ndarray) -> np.ndarray:
        """Our layer as what its key holds, in the usual one of `foreign_shapes`."""
        shape = self.foreign_shapes[0]
        match self.kind:
            case "matrix":
                return layer.reshape(shape[::-1]).T
            case "convolution":
                out, into, *window = shape
                return layer.reshape(*window, into, out).transpose(3, 2, 0, 1)
        if self.rows is None:
            return layer
        foreign = np.empty_like(layer)
        foreign[self.rows] = layer
        return foreign


@dataclasses.dataclass(frozen=True)
class Key:
    """What became of one tensor: the report of a conversion."""

    key: str
    type: str
    shape: tuple[int, ...]
    ours: str
    """Our name, or in brackets why it is not used."""


def match(
    places: list[Place], found: Mapping[str, Tensor], unused: Mapping[str, str], what: str
) -> list[Key]:
    """Check that a checkpoint holds what `places` name, and nothing else; a line per tensor.

    `unused` says why keys that contain a text are left out. Raises `UserError` naming the first key
    that is missing, unknown, or of another type or shape.
    """
    wanted = {key: place for place in places for key in place.keys}
    for key, place in wanted.items():
        if key not in found:
            raise UserError(f"{what} has no {key} ({place.path} here); give whole weights.")
        tensor, shapes = found[key], place.foreign_shapes
        if tensor.shape not in shapes:
            raise UserError(
                f"{what}: {key} has the shape {list(tensor.shape)}, and the config makes it "
                f"{list(shapes[0])}; give the config of these weights."
            )
        if tensor.type not in _FLOATS:
            raise UserError(f"{what}: {key} is of {tensor.type}; give weights of {_FLOATS[0]}.")
    report = []
    for key, tensor in found.items():
        reasons = [why for part, why in unused.items() if part in key]
        if key not in wanted and not reasons:
            raise UserError(
                f"{what} has {key}, which this model does not; give the config of these weights."
            )
        ours = wanted[key].path if key in wanted else f"({reasons[0]})"
        report.append(Key(key, tensor.type, tensor.shape, ours))
    return report


def imported(place: Place, found: Mapping[str, Tensor]) -> Output:
    """Our array as one to be written, read layer by layer and widened to float32."""
    return Output("F32", place.shape, functools.partial(_layers, place, found))


def _layers(place: Place, found: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    for key in place.keys:
        yield place.to_ours(found[key].read(...)).astype(np.float32)


def exported(place: Place, array: Any, types: Mapping[str, str]) -> dict[str, Output]:
    """Our array as tensors to be written there.

    `types` says what type keys had when they were imported; others become float32. Heads that were
    one row there become a row each, as transformers reads them.
    """
    outputs = {}
    for index, key in enumerate(place.keys):
        layer = np.asarray(array[index] if place.stacked else array)
        parts = functools.partial(_parts, place, layer)
        outputs[key] = Output(types.get(key, "F32"), place.foreign_shapes[0], parts)
    return outputs


def _parts(place: Place, layer: np.ndarray) -> tuple[np.ndarray, ...]:
    return (place.to_foreign(layer),)
