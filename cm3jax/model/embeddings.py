"""Tables that every model has: of ids, of positions, and the logits that they give."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import DecoderConfig
from cm3jax.model.layers import truncated_normal
from cm3jax.shapes import Array, Float


def vocabulary_tables(
    module: nn.Module, config: DecoderConfig, size: int
) -> tuple[Float[Array, "V D"], Float[Array, "V D"]]:
    """The parameters `embedding` and `head` of a module in `setup`; one table where they are tied.

    Both are float32, with the logical axes ("vocab", "embed").
    """
    init = partition.boxed_init(truncated_normal(config.init_std), "vocab", "embed")
    embedding = module.param("embedding", init, (size, config.width))
    head = embedding if config.tied else module.param("head", init, (size, config.width))
    return embedding, head


def position_table(
    module: nn.Module, name: str, config: DecoderConfig, length: int
) -> Float[Array, "L D"] | None:
    """The parameter of that name, of learned positions; None where positions are rotary."""
    if config.positions != "learned":
        return None
    init = partition.boxed_init(truncated_normal(config.position_std), "positions", "embed")
    return module.param(name, init, (length, config.width))


def head_of(params: Mapping[str, Any], config: DecoderConfig) -> Float[Array, "V D"]:
    """The table that gives the logits, of a model's parameters."""
    return params["embedding" if config.tied else "head"]


def logits(hidden: Float[Array, "*B D"], head: Float[Array, "V D"]) -> Float[Array, "*B V"]:
    """Scores of every id as float32, multiplied in the type of the hidden states."""
    # One axis of rows, as in `layers.matmul`.
    rows = hidden.reshape(-1, hidden.shape[-1])
    table = head.astype(hidden.dtype)
    scores = jnp.einsum("rd,vd->rv", rows, table, preferred_element_type=jnp.float32)
    return scores.reshape(*hidden.shape[:-1], -1)
