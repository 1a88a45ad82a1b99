"""Tables that every model has: of ids, of positions, and the logits that they give."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cm3jax.config import DecoderConfig
from cm3jax.model.layers import truncated_normal
from cm3jax.shapes import Array, Float


def vocabulary_tables(
    module: nn.Module, config: DecoderConfig, size: int
) -> tuple[Float[Array, "V D"], Float[Array, "V D"]]:
    """The parameters `embedding` and `head` of a module in `setup`; one table where they are tied.

    Both are float32, with the logical axes ("vocab", "embed").
    """
    init = _boxed(truncated_normal(config.init_std), "vocab", "embed")
    embedding = module.param("embedding", init, (size, config.width))
    head = embedding if config.tied else module.param("head", init, (size, config.width))
    return embedding, head


def position_table(
    module: nn.Module, name: str, config: DecoderConfig, length: int
) -> Float[Array, "L D"] | None:
    """The parameter of that name, of learned positions; None where positions are rotary."""
    if config.positions != "learned":
        return None
    init = _boxed(truncated_normal(config.position_std), "positions", "embed")
    return module.param(name, init, (length, config.width))


def _boxed(init: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """An initialiser of an array with these logical axes: boxed with them only while parameters
    are made, so that `module.param` gives back the array."""
    return nn.with_logical_partitioning(init, axes)


def logits(hidden: Float[Array, "*B D"], head: Float[Array, "V D"]) -> Float[Array, "*B V"]:
    """Scores of every id as float32, multiplied in the type of the hidden states."""
    # One axis of rows, as in `layers.matmul`.
    rows = hidden.reshape(-1, hidden.shape[-1])
    table = head.astype(hidden.dtype)
    scores = jnp.einsum("rd,vd->rv", rows, table, preferred_element_type=jnp.float32)
    return scores.reshape(*hidden.shape[:-1], -1)
