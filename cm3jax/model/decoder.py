"""The autoregressive decoder of CM3Leon (section 2.3): OPT-like, pre-norm, learned positions.

Fields of `DecoderConfig` turn it into its relatives.

Three ways through the same parameters: `__call__` for training rows, `prefill` for prompts and
`extend` for the tokens that follow them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm3jax.config import DecoderConfig
from cm3jax.model.attention import attend, attend_cached, packed_mask
from cm3jax.model.cache import Cache, KeyValues
from cm3jax.model.layers import (
    FeedForward,
    HeadNorm,
    Projection,
    layer_norm,
    rotate,
    rotations,
    truncated_normal,
)
from cm3jax.shapes import Array, Bool, Float, Int


class Block(nn.Module):
    """One layer: attention and feed-forward, each on the normed residual stream."""

    config: DecoderConfig

    def setup(self):
        """Name the matrices; the attention's output starts at zero like the feed-forward's."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        heads = (c.heads, c.head_width)
        into = ((c.width,), heads, ("embed", "heads", "head"), c.init_std, dtype)
        self.query, self.key, self.value = Projection(*into), Projection(*into), Projection(*into)
        self.out = Projection(heads, (c.width,), ("heads", "head", "embed"), 0.0, dtype)
        self.feed_forward = FeedForward(c.width, c.ffn, c.init_std, dtype)
        if c.qk_norm:
            self.query_norm, self.key_norm = HeadNorm(*heads), HeadNorm(*heads)

    def _project(self, x, rotation):
        normed = layer_norm(x)
        queries, keys, values = self.query(normed), self.key(normed), self.value(normed)
        if self.config.qk_norm:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        return queries, keys, values

    def _finish(self, x, attended):
        x = x + self.out(attended)
        return x + self.feed_forward(layer_norm(x))

    def row(self, x: Float[Array, "B L D"], mask: Bool[Array, "B 1 L L"], rotation):
        """A whole row; returns its new states and the keys and values."""
        queries, keys, values = self._project(x, rotation)
        return self._finish(x, attend(queries, keys, values, mask)), KeyValues(keys, values)

    def extend(self, x: Float[Array, "B T D"], layer, cache: Cache, prefix, rotation):
        """T more tokens per row; `cache.suffix` carries all layers, `prefix` is this layer's."""
        queries, keys, values = self._project(x, rotation)
        rows = jnp.arange(x.shape[0])[:, None]
        slots = cache.lengths[:, None] + jnp.arange(x.shape[1])
        all_keys = cache.suffix.keys.at[layer, rows, slots].set(keys, mode="drop")
        all_values = cache.suffix.values.at[layer, rows, slots].set(values, mode="drop")
        attended = attend_cached(
            queries,
            prefix,
            cache.prefix_lengths,
            (all_keys[layer], all_values[layer]),
            cache.lengths,
        )
        return self._finish(x, attended), KeyValues(all_keys, all_values)


_REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Decoder(nn.Module):
    """Token ids to hidden states and logits over one vocabulary of text, pictures and specials.

    The head is tied to the embedding. Parameters are float32 and stacked over layers ([N, ...]);
    activations have `config.dtype`.
    """

    config: DecoderConfig
    vocab_size: int

    def setup(self):
        """Create the tables and the stacked layers."""
        c = self.config
        table = nn.with_logical_partitioning(truncated_normal(c.init_std), ("vocab", "embed"))
        self.embedding = self.param("embedding", table, (self.vocab_size, c.width))
        if c.positions == "learned":
            table = nn.with_logical_partitioning(
                truncated_normal(c.position_std), ("positions", "embed")
            )
            self.position = self.param("position", table, (c.context, c.width))
        self.layers = Block(c)

    def _embed(self, tokens, positions):
        """The first layer's input, and the rotation of queries and keys if positions are rotary."""
        c = self.config
        x = jnp.take(self.embedding, tokens, axis=0)
        if c.positions == "learned":
            x = x + jnp.take(self.position, positions, axis=0)
        rotation = rotations(positions, c.head_width) if c.positions == "rope" else None
        return x.astype(jnp.dtype(c.dtype)), rotation

    def _scan(self, body, carry, *xs):
        """Run `body(block, carry, x) -> (carry, y)` over the layers."""
        if self.config.remat != "none":
            body = nn.remat(body, prevent_cse=False, policy=_REMAT[self.config.remat])
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.layers,
            unroll=self.config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.layers, carry, *xs)

    def __call__(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "B L"], segments: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Final hidden states of packed rows; tokens see earlier ones of their own segment."""
        mask = packed_mask(segments)
        x, rotation = self._embed(tokens, positions)
        x, _ = self._scan(lambda block, x, _: (block.row(x, mask, rotation)[0], None), x, None)
        return layer_norm(x)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every id as float32, by the tied embedding."""
        table = self.embedding.astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

    def prefill(
        self, tokens: Int[Array, "P S"], lengths: Int[Array, " P"]
    ) -> tuple[Float[Array, "P S D"], KeyValues]:
        """Final hidden states of prompts and the keys and values of every layer.

        Prompts stand at the left; beyond `lengths` is padding, which no later token reads.
        """
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        mask = packed_mask((places < lengths[:, None]).astype(jnp.int32))
        x, rotation = self._embed(tokens, places)
        x, kept = self._scan(lambda block, x, _: block.row(x, mask, rotation), x, None)
        return layer_norm(x), kept

    def extend(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states of T more tokens per row, and the cache with them in it.

        `positions` count from the start of the row's prompt: `prefix length + tokens emitted`.
        """

        x, rotation = self._embed(tokens, positions)

        def body(block, carry, per_layer):
            x, suffix = carry
            layer, prefix = per_layer
            x, suffix = block.extend(
                x,
                layer,
                Cache(cache.prefix, cache.prefix_lengths, suffix, cache.lengths),
                (prefix.keys, prefix.values),
                rotation,
            )
            return (x, suffix), None

        layers = jnp.arange(self.config.layers)
        (x, suffix), _ = self._scan(body, (x, cache.suffix), (layers, cache.prefix))
        lengths = cache.lengths + tokens.shape[1]
        return layer_norm(x), Cache(cache.prefix, cache.prefix_lengths, suffix, lengths)
