"""Parts of a Transformer layer (section 2.3; Chameleon, arXiv 2405.09818, section 2.3)."""

import math
from functools import cache, partial
from statistics import NormalDist
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.model.quantised import FewBits, product
from cm3jax.shapes import Array, Float, Int, Key


def truncated_normal(std: float):
    """Initialiser: a normal of this standard deviation, cut at 3 of them, not rescaled.

    The cut lowers the effective deviation by 1.3 %, as in the paper's framework (metaseq). A
    value is one of 65,536 quantiles: looked up, not computed, because a compiled inverse error
    function may differ in its last bit from one mesh to another.
    """

    def init(key, shape, dtype=jnp.float32):
        table = jnp.asarray(std * _quantiles(), dtype)
        return table[jax.random.bits(key, shape, jnp.uint16).astype(jnp.int32)]

    return init


@cache
def _quantiles() -> Float[np.ndarray, "65536"]:
    """Middles of equally likely intervals of the standard normal cut at 3, ascending."""
    normal, count = NormalDist(), 1 << 16
    low = normal.cdf(-3.0)
    shares = low + (1 - 2 * low) * (np.arange(count) + 0.5) / count
    return np.array([normal.inv_cdf(share) for share in shares])


rematerialised = partial(jax.checkpoint, prevent_cse=False)
"""`jax.checkpoint` for cheap functions: the backward pass keeps only their inputs and computes the
rest again."""


@rematerialised
def layer_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "..."] | float = 1.0,
    bias: Float[Array, "..."] | float = 0.0,
) -> Float[Array, "*B D"]:
    """Layer normalisation in float32, eps 1e-5, then gain and bias; keeps the input's type."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return (centred * inverse * scale + bias).astype(x.dtype)


@rematerialised
def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"]) -> Float[Array, "*B D"]:
    """Division by the root mean square in float32, eps 1e-5, then a gain; keeps the type."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-5)
    return (x32 * inverse * scale).astype(x.dtype)


class Norm(nn.Module):
    """The norm of the residual stream: `layer` without parameters, `rms` with a gain."""

    kind: Literal["layer", "rms"]

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Norm in float32; keeps the input's type."""
        if self.kind == "layer":
            return layer_norm(x)
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        return rms_norm(x, self.param("scale", ones, x.shape[-1:]))


def dropout(
    x: Float[Array, "B L D"], rate: float, key: Key[Array, ""] | None
) -> Float[Array, "B L D"]:
    """Zero a random share of the entries and scale up the others; without a key, nothing happens.

    Each row's draws depend on the key and the row's number in the global batch only, not on the
    batch's size, mesh or processes.
    """
    if key is None or rate == 0.0:
        return x
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(x.shape[0]))
    keep = jax.vmap(lambda row: jax.random.bernoulli(row, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def rotations(
    positions: Int[Array, "B L"], width: int
) -> tuple[Float[Array, "B L 1 half"], Float[Array, "B L 1 half"]]:
    """Cosines and sines of rotary positions: `width / 2` frequencies, 10,000**(-2i / width)."""
    frequencies = 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    angles = positions[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B L H A"],
    rotation: tuple[Float[Array, "B L 1 half"], Float[Array, "B L 1 half"]],
) -> Float[Array, "B L H A"]:
    """Turn channel i against channel i + A/2 by the position's angle i (the pairing of HF)."""
    cos, sin = (part.astype(x.dtype) for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class HeadNorm(nn.Module):
    """Layer normalisation over each head, with a gain and a bias per head and channel."""

    heads: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*B H A"]) -> Float[Array, "*B H A"]:
        """Norm in float32; keeps the input's type."""
        shape, names = (self.heads, self.width), ("heads", "head")
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", nn.with_logical_partitioning(ones, names), shape)
        bias = self.param("bias", nn.with_logical_partitioning(zeros, names), shape)
        return layer_norm(x, scale, bias)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3, 4))
def matmul(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."] | FewBits,
    inputs: int,
    dtype: jnp.dtype,
    quantised: str,
) -> Float[Array, "..."]:
    """Contract the last `inputs` axes of x with the first ones of the kernel, both as `dtype`.

    A kernel of few bits (`model.quantised`) is multiplied as such.

    `quantised` says what `training.precision` makes of the product, so that jax keeps its trace
    apart from others.
    """
    rows, outputs = x.shape[: x.ndim - inputs], kernel.shape[inputs:]
    size = math.prod(kernel.shape[:inputs])
    # As plain matrices: with two axes of rows, XLA's CPU backend transposes its operands in memory
    # for the gradient of the kernel, which takes longer than the product.
    flat = x.astype(dtype).reshape(-1, size)
    if isinstance(kernel, FewBits):
        return product(flat, kernel.as_matrix(inputs)).reshape(rows + outputs)
    sides = flat, kernel.astype(dtype).reshape(size, -1)
    y = jax.lax.dot_general(*sides, (((1,), (0,)), ((), ())))
    return y.reshape(rows + outputs)


class Projection(nn.Module):
    """A matrix product over the trailing axes: `inputs` axes are contracted to `outputs` axes.

    `names` are the logical axes of the kernel, inputs first; `std` 0 starts it at zero. With a rank
    in `lora`, the product of two thin matrices is added to the kernel, the second of which starts
    at zero (arXiv 2106.09685, section 4.1).
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    names: tuple[str, ...]
    std: float
    dtype: jnp.dtype
    lora: tuple[int, float] = (0, 0.0)
    """Rank of the correction, and what multiplies it."""
    quantised: str = ""
    """As in `matmul`."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Map `[..., *inputs]` to `[..., *outputs]`."""
        init = truncated_normal(self.std) if self.std else nn.initializers.zeros
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, self.names), self.inputs + self.outputs
        )
        n, (rank, scale) = len(self.inputs), self.lora
        y = matmul(x, kernel, n, self.dtype, self.quantised)
        if not rank:
            return y
        init = truncated_normal(math.prod(self.inputs) ** -0.5)
        into = nn.with_logical_partitioning(init, (*self.names[:n], "rank"))
        out = nn.with_logical_partitioning(nn.initializers.zeros, ("rank", *self.names[n:]))
        down = self.param("lora_down", into, (*self.inputs, rank))
        up = self.param("lora_up", out, (rank, *self.outputs))
        low = matmul(x, down, n, self.dtype, self.quantised)
        return y + scale * matmul(low, up, 1, self.dtype, self.quantised)


@rematerialised
def _gated(gate: Float[Array, "*B F"], inner: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    return jax.nn.silu(gate) * inner


class FeedForward(nn.Module):
    """D -> F -> D through ReLU, or through a gate (SwiGLU); `out_std` 0 starts it at zero."""

    width: int
    hidden: int
    activation: Literal["relu", "swiglu"]
    std: float
    out_std: float
    dtype: jnp.dtype
    lora: tuple[int, float] = (0, 0.0)
    quantised: str = ""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Apply the matrices."""
        kind = self.dtype, self.lora, self.quantised
        into = ((self.width,), (self.hidden,), ("embed", "mlp"), self.std, *kind)
        out = ((self.hidden,), (self.width,), ("mlp", "embed"), self.out_std, *kind)
        inner = Projection(*into, name="up")(x)
        if self.activation == "swiglu":
            inner = _gated(Projection(*into, name="gate")(x), inner)
        else:
            inner = jax.nn.relu(inner)
        return Projection(*out, name="down")(inner)
