"""Matrices of 8 or 4 bits in the file of an exported run: bytes, and their scales beside them.

`model.weights` of the run's config says what the bytes are; two numbers of int4 share one, the
first from the first half of the last axis, in the lower bits. Readers get float32, which
`model.quantised` brings to the same bits again.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm3jax.config import WeightType
from cm3jax.errors import UserError
from cm3jax.io import safetensors_file
from cm3jax.io.safetensors_file import Output, Tensor
from cm3jax.model.quantised import contracted_by, quantise

_SCALES = "_scales"
"""What follows a matrix's name in that of its scales."""


def outputs(name: str, path: tuple[Any, ...], kernel: Any, kind: WeightType) -> dict[str, Output]:
    """The matrix at a path of a tree of parameters, and its scales, to be written by its name.

    Raises `UserError` for int4 where the last axis can't be halved.
    """
    if kind == "int4" and kernel.shape[-1] % 2:
        raise UserError(
            f"{name} has {kernel.shape[-1]} outputs, and two numbers of int4 share a byte; take "
            "int8."
        )
    found = quantise(jnp.asarray(kernel), contracted_by(path), kind)
    return {
        name: safetensors_file.whole(_packed(np.asarray(found.values), kind)),
        name + _SCALES: safetensors_file.whole(found.scales),
    }


def widened(tensors: Mapping[str, Tensor], kind: WeightType, file: Any) -> dict[str, Tensor]:
    """The tensors of a file with each matrix and its scales as one of float32.

    Raises `UserError` where they don't fit each other.
    """
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SCALES)}
    for name, scales in tensors.items():
        if not name.endswith(_SCALES):
            continue
        base = name.removesuffix(_SCALES)
        values = out.get(base)
        if values is None or not kind or not _fit(values, scales, kind):
            raise UserError(
                f"{file} is damaged: {name} scales nothing that is there; export the run again."
            )
        shape = _shape(values, kind)
        out[base] = Tensor("F32", shape, functools.partial(_read, values, scales, shape, kind))
    return out


def _fit(values: Tensor, scales: Tensor, kind: WeightType) -> bool:
    if (values.type, scales.type) != ("U8", "F32") or len(values.shape) != len(scales.shape):
        return False
    shape = _shape(values, kind)
    sizes = zip(shape, scales.shape, strict=True)
    return scales.shape[-1:] == shape[-1:] and all(few and not many % few for many, few in sizes)


def _shape(values: Tensor, kind: WeightType) -> tuple[int, ...]:
    *others, last = values.shape
    return (*others, 2 * last if kind == "int4" else last)


def _packed(values: np.ndarray, kind: WeightType) -> np.ndarray:
    if kind != "int4":
        return values.view(np.uint8)
    low, high = np.split(values.astype(np.int8).view(np.uint8) & 15, 2, axis=-1)
    return low | high << 4


def _unpacked(packed: np.ndarray, kind: WeightType) -> np.ndarray:
    if kind != "int4":
        return packed.view(np.int8 if kind == "int8" else jnp.float8_e4m3fn)
    halves = np.concatenate([packed & 15, packed >> 4], axis=-1)
    return ((halves ^ 8) - 8).astype(np.uint8).view(np.int8)


def _read(
    values: Tensor, scales: Tensor, shape: tuple[int, ...], kind: WeightType, index: Any
) -> np.ndarray:
    """The part `index` of the matrix as float32."""
    index = tuple(slice(None) for _ in shape) if index is ... else index
    if kind == "int4":  # halves of the last axis are together
        part = _unpacked(values.read((*index[:-1], slice(None))), kind)[..., index[-1]]
    else:
        part = _unpacked(values.read(index), kind)
    factors = scales.read(...)
    for axis, (size, few) in enumerate(zip(shape, scales.shape, strict=True)):
        shared = np.arange(size)[index[axis]] * few // size
        factors = np.take(factors, shared, axis) if few > 1 else factors
    return part.astype(np.float32) * factors
