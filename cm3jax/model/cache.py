"""Keys and values kept while decoding, in two parts.

The *prefix* is read-only: one entry per prompt and guidance stream (P), computed once by prefill
and shared by all samples (G) of that prompt. The *suffix* belongs to a row and grows by the tokens
it emits. Rows are ordered prompt by prompt: row `r` reads prefix `r // G`, so B = P * G. Each layer
has arrays of its own, heads before tokens: a step multiplies them as they are, without a copy.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cm3jax.config import DecoderConfig
from cm3jax.model.quantised import FewBits, kept_like, quantise
from cm3jax.shapes import Array, Float, Int

NONE = -1
"""In place of an id: there is none."""


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of a batch of token rows in one layer."""

    keys: Float[Array, "P K S A"] | FewBits
    values: Float[Array, "P K S A"] | FewBits

    def widened(self, dtype: Any) -> "KeyValues":
        """The same with what few bits stand for."""
        parts = (self.keys, self.values)
        return KeyValues(*(x.widened(dtype) if isinstance(x, FewBits) else x for x in parts))

    def kept_like(self, old: "KeyValues") -> "KeyValues":
        """The same, quantised where `old` is, with a scale for each head of each token."""
        return KeyValues(kept_like(old.keys, self.keys), kept_like(old.values, self.values))

    def stored(self, config: DecoderConfig) -> "KeyValues":
        """The same in the type that a decoder of this config keeps them in (`model.cache`)."""
        if not config.cache:
            return self
        return KeyValues(
            *(quantise(part, (-1,), config.cache) for part in (self.keys, self.values))
        )

    @classmethod
    def of_tokens(
        cls, keys: Float[Array, "P S K A"], values: Float[Array, "P S K A"]
    ) -> "KeyValues":
        """From keys and values as layers make them, token by token."""
        return cls(keys.swapaxes(1, 2), values.swapaxes(1, 2))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["prefix", "prefix_lengths", "suffix", "lengths"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class LayerCache:
    """What one layer reads."""

    prefix: KeyValues
    prefix_lengths: Int[Array, " P"]
    suffix: KeyValues
    lengths: Int[Array, " B"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["prefix", "prefix_lengths", "suffix", "lengths", "newest"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
    """Prefix and suffix of every layer; entries beyond a length are never read."""

    prefix: tuple[KeyValues, ...]
    prefix_lengths: Int[Array, " P"]
    suffix: tuple[KeyValues, ...]
    lengths: Int[Array, " B"]
    newest: Int[Array, " B"]
    """The id that each row read last; `NONE` if it has read none."""

    @property
    def samples(self) -> int:
        """G, the rows of each prefix."""
        return len(self.lengths) // len(self.prefix_lengths)

    @property
    def layers(self) -> list[LayerCache]:
        """What each layer reads, in order."""
        return [
            LayerCache(prefix, self.prefix_lengths, suffix, self.lengths)
            for prefix, suffix in zip(self.prefix, self.suffix, strict=True)
        ]

    def extended(self, suffix: Sequence[KeyValues], tokens: Int[Array, "B T"]) -> "Cache":
        """The cache with these tokens read, which are in `suffix` already."""
        return dataclasses.replace(
            self,
            suffix=tuple(suffix),
            lengths=self.lengths + tokens.shape[1],
            newest=tokens[:, -1],
        )

    def shortened(
        self, old: "Cache", tokens: Int[Array, "B T"], count: Int[Array, " B"]
    ) -> "Cache":
        """The cache that `extended` made of `old`, with only the first `count` tokens per row."""
        last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        newest = jnp.where(count > 0, last, old.newest)
        return dataclasses.replace(self, lengths=old.lengths + count, newest=newest)


def start_cache(
    prefix: Sequence[KeyValues],
    prefix_lengths: Int[Array, " P"],
    newest: Int[Array, " P"],
    samples: int,
    capacity: int,
) -> Cache:
    """A cache for `samples` rows per prefix, each with room for `capacity` emitted tokens; `newest`
    is the last id of each prefix, or `NONE`."""
    rows = len(prefix_lengths) * samples

    def empty(part: Array) -> Array:
        return jnp.zeros((rows, part.shape[1], capacity, part.shape[3]), part.dtype)

    suffix = tuple(jax.tree.map(empty, layer) for layer in prefix)
    lengths, newest = jnp.zeros(rows, jnp.int32), jnp.repeat(newest, samples)
    return Cache(tuple(prefix), prefix_lengths, suffix, lengths, newest)


def empty_entries(
    sizes: tuple[int, int, int], config: DecoderConfig
) -> Float[Array, "P K S A"] | FewBits:
    """Zeros for the keys or the values of P rows of S tokens, K heads each."""
    if not config.cache:
        return jnp.zeros((*sizes, config.head_width), config.dtype)
    values = jnp.zeros((*sizes, config.head_width), config.cache)
    return FewBits(values, jnp.zeros((*sizes, 1), jnp.float32))
