"""Arrays of 8 or 4 bits with scales, for generation: matrices of the layers, keys and values.

qwix makes them and multiplies with them. On CPUs rows are brought to int8, too: XLA multiplies int8
by int8 there faster than float32, and float32 by int8 far slower. Elsewhere a matrix is widened
inside the product, which reads only its few bits from memory.
"""

import dataclasses
import importlib.util
import math
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import WeightType
from cm3jax.errors import UserError
from cm3jax.shapes import AnyArray, Array, Float

_TYPES: dict[str, Any] = {"int8": jnp.int8, "int4": jnp.int4, "fp8": jnp.float8_e4m3fn}
_LARGEST = {"int8": (127.5, 127), "int4": (7.5, 7), "fp8": (1, 1)}
"""What qwix scales the largest value to, and what becomes of it: half a step apart for integers."""
GROUP = 32
"""Inputs of an int4 matrix that share a scale, at most; other types have one scale per output."""
_CONTRACTED = {
    **dict.fromkeys(("query", "key", "value"), (-3,)),
    "out": (-3, -2),
    **dict.fromkeys(("up", "gate", "down", "shift"), (-2,)),
}
"""Axes of inputs of the matrices, by the names of their modules."""


@no_type_check  # transformations also fill it with shapes, shardings and the like
@partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class FewBits:
    """An array as few bits times scales, each for the entries that share it."""

    values: Array
    """int8, int4 or float8."""
    scales: Float[Array, "..."]
    """As many axes as `values`; each size divides that of the values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the array."""
        return self.values.shape

    def widened(self, dtype: Any) -> Float[Array, "..."]:
        """The array itself."""
        import qwix

        return qwix.dequantize(qwix.QArray(self.values, self.scales)).astype(dtype)

    def as_matrix(self, inputs: int) -> "FewBits":
        """The array with two axes: its first `inputs` ones joined, and the others."""
        shapes = (part.shape for part in (self.values, self.scales))
        sides = [(math.prod(shape[:inputs]), math.prod(shape[inputs:])) for shape in shapes]
        return FewBits(self.values.reshape(sides[0]), self.scales.reshape(sides[1]))


def stored_bytes(array: Any) -> int:
    """Bytes of an array, or of its shape and type; two of int4 share one."""
    return math.ceil(array.size * (0.5 if array.dtype == jnp.int4 else array.dtype.itemsize))


def require_qwix(what: str) -> None:
    """Raise `UserError`, which begins with `what` asks for it, unless qwix is there."""
    if importlib.util.find_spec("qwix") is None:
        raise UserError(
            f"{what} needs the package qwix; install it (the extra `quantised`), or leave the "
            "option out."
        )


@partial(jax.jit, static_argnames=("contracted", "kind"))
def quantise(
    array: Float[AnyArray, "..."], contracted: tuple[int, ...], kind: WeightType
) -> FewBits:
    """The array in this type; entries along the axes `contracted` share scales.

    Scales have 16 bits of mantissa: their products with values are exact in float32, so that what
    was widened is quantised to the same bits again.
    """
    import qwix

    axes = {axis % array.ndim for axis in contracted}
    tiles: dict[int, int] = {}
    if kind == "int4":  # along the last axis of inputs, where its size can be cut so
        tiles = {axis: math.gcd(array.shape[axis], GROUP) for axis in [max(axes)]}
    shared = tiles.keys() or axes
    bound, largest = _LARGEST[kind]
    found = qwix.quantize(
        jnp.asarray(array, jnp.float32),
        _TYPES[kind],
        channelwise_axes=sorted(set(range(array.ndim)) - shared),
        tiled_axes=tiles,
        calibration_method=f"absmax,{bound / largest}",
    )
    return FewBits(found.qvalue, _short(found.scale))


def _short(scales: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The nearest numbers whose mantissas have 16 bits."""
    bits = jax.lax.bitcast_convert_type(scales, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + 128) & jnp.uint32(0xFFFFFF00), jnp.float32)


def quantise_matrix(
    path: tuple[Any, ...], kernel: Float[AnyArray, "..."], kind: WeightType, dtype: Any
) -> FewBits | Float[Array, "..."]:
    """The matrix at this path of a tree of parameters, as it is kept in memory for generation.

    On CPUs only int8 is kept: products with other types are slower than with what they widen to,
    in the type `dtype` of the activations.
    """
    found = quantise(kernel, contracted_by(path), kind)
    if kind != "int8" and partition.platform() == "cpu":
        return found.widened(dtype)
    return found


def contracted_by(path: tuple[Any, ...]) -> tuple[int, ...]:
    """The axes of inputs of the kernel at this path of a tree of parameters."""
    return _CONTRACTED[path[-2].key]


def product(rows: Float[Array, "B I"], matrix: FewBits) -> Float[Array, "B O"]:
    """Rows times a matrix, in the type of the rows."""
    import qwix

    kept = qwix.QArray(matrix.values, matrix.scales.astype(rows.dtype))
    sides = (((1,), (0,)), ((), ()))
    if partition.platform() != "cpu" or len(matrix.scales) > 1:
        return qwix.dot_general(rows, kept, sides)
    count = len(rows)
    # A single row would go through a loop of its own kind, fifty times slower.
    padded = jnp.pad(rows, ((0, max(0, 2 - count)), (0, 0)))
    small = quantise(padded, (1,), "int8")
    few = qwix.QArray(small.values, small.scales.astype(rows.dtype))
    return qwix.dot_general(few, kept, sides)[:count]


def kept_like(old: Any, new: Any) -> Any:
    """Keys or values as the cache keeps its own: quantised where `old` is, with a scale each."""
    return quantise(new, (-1,), "int8") if isinstance(old, FewBits) else new
