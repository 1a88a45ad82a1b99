"""Keys and values kept while decoding, in two parts.

The *prefix* is read-only: one entry per prompt and guidance stream (P), computed once by prefill
and shared by all samples (G) of that prompt. The *suffix* belongs to a row and grows by the tokens
it emits. Rows are ordered prompt by prompt: row `r` reads prefix `r // G`, so B = P * G. The layer
axis comes first and the whole tree is carried through the layer scan, which updates it in place.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cm3jax.shapes import Array, Float, Int


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of a batch of token rows: of all layers stacked, or of one (no N)."""

    keys: Float[Array, "*N P S K A"]
    values: Float[Array, "*N P S K A"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["prefix", "prefix_lengths", "suffix", "lengths"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Prefix and suffix; entries beyond a length are never read."""

    prefix: KeyValues
    prefix_lengths: Int[Array, " P"]
    suffix: KeyValues
    lengths: Int[Array, " B"]


def start_cache(
    prefix: KeyValues, prefix_lengths: Int[Array, " P"], samples: int, capacity: int
) -> Cache:
    """A cache for `samples` rows per prefix, each with room for `capacity` emitted tokens."""
    layers, prompts, _, heads, width = prefix.keys.shape
    shape = (layers, prompts * samples, capacity, heads, width)
    empty = KeyValues(jnp.zeros(shape, prefix.keys.dtype), jnp.zeros(shape, prefix.values.dtype))
    return Cache(prefix, prefix_lengths, empty, jnp.zeros(prompts * samples, jnp.int32))
