"""Layers of a Transformer, and the scan that runs a stack of them as one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm3jax.config import DecoderConfig
from cm3jax.model.attention import Attend, attend_cached, attend_kept, seen_of_suffix
from cm3jax.model.cache import KeyValues, LayerCache
from cm3jax.model.layers import FeedForward, HeadNorm, Norm, Projection, apply_rope, dropout
from cm3jax.shapes import Array, Float, Int, Key

Rotation = tuple[Float[Array, "B L 1 half"], Float[Array, "B L 1 half"]] | None
"""Rotary positions (`layers.rotations`), or None where positions are learned."""


def output_std(config: DecoderConfig) -> float:
    """Standard deviation of the matrices that end a branch.

    They start at zero ("output layers", section 2.3), except before a norm, which would make the
    first update of a zero as large as the residual stream.
    """
    return config.init_std if config.swin_norm else 0.0


class Attention(nn.Module):
    """Attention as a branch of the residual stream: projections, norms and dropout."""

    config: DecoderConfig

    def setup(self):
        """Name the matrices."""
        c = self.config
        kind = jnp.dtype(c.dtype), c.lora, c.quantised
        many, few = (c.heads, c.head_width), (c.groups, c.head_width)
        names = ("embed", "heads", "head")
        self.query = Projection((c.width,), many, names, c.init_std, *kind)
        self.key = Projection((c.width,), few, names, c.init_std, *kind)
        self.value = Projection((c.width,), few, names, c.init_std, *kind)
        self.out = Projection(many, (c.width,), (*names[1:], names[0]), output_std(c), *kind)
        self.attention_norm = Norm(c.norm)
        if c.qk_norm:
            self.query_norm, self.key_norm = HeadNorm(*many), HeadNorm(*few)

    def enter(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What the branch reads of the residual stream."""
        return x if self.config.swin_norm else self.attention_norm(x)

    def queries(self, entered: Float[Array, "B L D"], rotation: Rotation):
        """Queries [B L H A]."""
        queries = self.query(entered)
        queries = self.query_norm(queries) if self.config.qk_norm else queries
        return queries if rotation is None else apply_rope(queries, rotation)

    def keys_values(self, entered: Float[Array, "B S D"], rotation: Rotation):
        """Keys and values [B S K A] of what is attended to."""
        keys, values = self.key(entered), self.value(entered)
        keys = self.key_norm(keys) if self.config.qk_norm else keys
        return keys if rotation is None else apply_rope(keys, rotation), values

    def leave(self, x: Float[Array, "B L D"], attended: Float[Array, "B L H A"], key):
        """The residual stream after the branch."""
        branch = self.out(attended)
        branch = self.attention_norm(branch) if self.config.swin_norm else branch
        return x + dropout(branch, self.config.dropout, key)


class Block(nn.Module):
    """One layer: attention and feed-forward layer, each a branch of the residual stream."""

    config: DecoderConfig

    def setup(self):
        """The attention's parameters are siblings of the feed-forward layer's."""
        c = self.config
        self.attention = Attention(c)
        nn.share_scope(self, self.attention)
        self.feed_forward = FeedForward(
            c.width,
            c.ffn,
            c.activation,
            c.init_std,
            output_std(c),
            jnp.dtype(c.dtype),
            c.lora,
            c.quantised,
        )
        self.feed_forward_norm = Norm(c.norm)

    def row(
        self,
        x: Float[Array, "B L D"],
        attend: Attend,
        rotation: Rotation,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValues]:
        """A whole row: its new states, and the keys and values. Without a key nothing drops."""
        keys = _split(key, 2)
        x, kept = self.attend(x, attend, rotation, keys[0])
        return self.feed(x, keys[1]), kept

    def attend(self, x, attend, rotation, key):
        """A whole row through the attention only."""
        entered = self.attention.enter(x)
        queries = self.attention.queries(entered, rotation)
        kept = self.attention.keys_values(entered, rotation)
        attended = attend(queries, *kept)
        return self.attention.leave(x, attended, key), KeyValues.of_tokens(*kept)

    def feed(self, x: Float[Array, "B L D"], key: Key[Array, ""] | None) -> Float[Array, "B L D"]:
        """States through the feed-forward layer."""
        swin = self.config.swin_norm
        branch = self.feed_forward(x if swin else self.feed_forward_norm(x))
        branch = self.feed_forward_norm(branch) if swin else branch
        return x + dropout(branch, self.config.dropout, key)

    def extend(
        self, x: Float[Array, "B T D"], cache: LayerCache, rotation: Rotation
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """T more tokens per row, and the suffix with them in it."""
        queries, cache = self._append(x, cache, rotation)
        attended = attend_cached(queries, cache)
        return self.feed(self.attention.leave(x, attended, None), None), cache.suffix

    def _append(self, x, cache, rotation):
        """Queries of T more tokens, and the cache with their keys and values in its suffix."""
        entered = self.attention.enter(x)
        queries = self.attention.queries(entered, rotation)
        new = self.attention.keys_values(entered, rotation)
        suffix = jax.tree.map(
            lambda old, more: _written(old, more, cache.lengths),
            cache.suffix,
            KeyValues.of_tokens(*new).kept_like(cache.suffix),
        )
        return queries, dataclasses.replace(cache, suffix=suffix)


_FEW = 16
"""Tokens that a TPU writes one by one, at most: each is an operation of the program."""


def _written(old: Array, new: Array, lengths: Int[Array, " B"]) -> Array:
    """`old` [B K C A], or its scales, with T more tokens a row [B K T A], the first at the row's
    length; none beyond the capacity."""
    if new.shape[2] > _FEW:  # a prompt's rest or a whole answer, which come once
        return _scattered(old, new, lengths)
    return jax.lax.platform_dependent(old, new, lengths, tpu=_updated, default=_scattered)


def _updated(old, new, lengths):
    """A TPU writes this into the suffix in place; a scatter copies that twice a chunk."""

    def write(row, more, at):
        return jax.lax.dynamic_update_slice(row, more, (0, at, 0))

    # Tokens without room land on the last entry, which the one that belongs there then replaces.
    for token in reversed(range(new.shape[2])):
        old = jax.vmap(write)(old, new[:, :, token : token + 1], lengths + token)
    return old


def _scattered(old, new, lengths):
    rows = jnp.arange(len(old))[:, None]
    slots = lengths[:, None] + jnp.arange(new.shape[2])
    new = new.swapaxes(1, 2)
    if slots.size == 1:
        # On CPUs, XLA writes a single entry in a way that copies the whole suffix twice: the
        # second one here is of no row, and dropped.
        rows, slots = jnp.append(rows, rows + 1, 1), jnp.append(slots, slots, 1)
        new = jnp.append(new, new, 1)
    return old.at[rows, :, slots].set(new, mode="drop")


class CrossBlock(Block):
    """A layer that also attends to an encoder's states, between its attention and the rest."""

    def setup(self):
        """The second attention has a scope of its own."""
        super().setup()
        self.cross = Attention(self.config)

    def row_with_source(
        self,
        x: Float[Array, "B L D"],
        attend: Attend,
        rotation: Rotation,
        key: Key[Array, ""] | None,
        source: Float[Array, "B S D"],
        attend_source: Attend,
    ) -> Float[Array, "B L D"]:
        """A whole row, with the encoder's states `source` and how they are attended to."""
        keys = _split(key, 3)
        x, _ = self.attend(x, attend, rotation, keys[0])
        queries = self.cross.queries(self.cross.enter(x), None)
        attended = attend_source(queries, *self.cross.keys_values(source, None))
        x = self.cross.leave(x, attended, keys[1])
        return self.feed(x, keys[2])

    def keys_values(self, source: Float[Array, "B S D"]) -> KeyValues:
        """Keys and values of an encoder's states, to be kept."""
        return KeyValues.of_tokens(*self.cross.keys_values(source, None))

    def extend(
        self, x: Float[Array, "B T D"], cache: LayerCache, rotation: Rotation
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """T more tokens per row; the prefix are keys and values of the source."""
        queries, cache = self._append(x, cache, rotation)
        seen = seen_of_suffix(cache, x.shape[1])[:, None]
        x = self.attention.leave(x, attend_kept(queries, cache.suffix, seen), None)

        # The samples of a prompt are in one row of queries: its keys and values are read once.
        queries = self.cross.queries(self.cross.enter(x), None)
        by_prompt = queries.reshape(len(cache.prefix_lengths), -1, *queries.shape[2:])
        # A slot without a prompt sees one entry: a softmax over none is not a number.
        lengths = jnp.maximum(cache.prefix_lengths, 1)
        there = jnp.arange(cache.prefix.keys.shape[2]) < lengths[:, None]
        attended = attend_kept(by_prompt, cache.prefix, there[:, None, None])
        x = self.cross.leave(x, attended.reshape(queries.shape), None)
        return self.feed(x, None), cache.suffix


def _split(key: Key[Array, ""] | None, count: int):
    return [None] * count if key is None else jax.random.split(key, count)


def layer_keys(key: Key[Array, ""] | None, layers: int) -> Key[Array, " N"] | None:
    """A key per layer, to be scanned with `scan_layers`; None stays None."""
    return None if key is None else jax.random.split(key, layers)


_REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def scan_layers(
    block: nn.Module, config: DecoderConfig, layers: int, body: Callable[..., Any], carry, *xs
):
    """Run `body(block, carry, *x) -> (carry, y)` over `layers` layers, stacked in one `block`.

    `xs` are scanned along their leading axis of layers; the config says what is recomputed in the
    backward pass and how many layers make one turn of the loop.
    """
    if config.remat != "none":
        body = nn.remat(body, prevent_cse=False, policy=_REMAT[config.remat])
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=layers,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(block, carry, *xs)
