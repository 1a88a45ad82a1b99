"""Parti's encoder-decoder (arXiv 2206.10789): an encoder reads the caption, a decoder draws.

Layers, norms, positions and the vocabulary are those of `Decoder`; the decoder's layers also attend
to the encoder's states. So are the ways through it: `__call__` for training, `prefill` for captions
and `extend` for the image that follows them, which read the decoder's layers apart.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm3jax.config import DecoderConfig
from cm3jax.model import embeddings
from cm3jax.model.attention import attend, row_attention
from cm3jax.model.block import Block, CrossBlock, layer_keys, scan_layers
from cm3jax.model.cache import Cache, KeyValues
from cm3jax.model.embeddings import position_table, vocabulary_tables
from cm3jax.model.kernels import kernel_for
from cm3jax.model.layers import Norm, rotations
from cm3jax.partition import shard_looked_up, shard_rows
from cm3jax.shapes import Array, Bool, Float, Int, Key


class EncoderDecoder(nn.Module):
    """Caption ids and image ids to hidden states and logits over one vocabulary.

    `config` describes the decoder's layers and, except for their number, the encoder's; its
    `context` plays no part. S = text_tokens is the longest caption, L at most `image_tokens`.
    """

    config: DecoderConfig
    encoder_layers: int
    vocab_size: int
    text_tokens: int
    image_tokens: int

    def setup(self):
        """Create the tables and both stacks."""
        c = self.config
        self.embedding, self.head = vocabulary_tables(self, c, self.vocab_size)
        self.text_position = position_table(self, "text_position", c, self.text_tokens)
        self.position = position_table(self, "position", c, self.image_tokens)
        self.encoder, self.encoder_norm = Block(c), Norm(c.norm)
        self.layers, self.final_norm = CrossBlock(c), Norm(c.norm)
        self.layer = [CrossBlock(c) for _ in range(c.layers)]

    def _embed(self, tokens, table, places=None):
        """The first layer's input, and the rotation of queries and keys if positions are rotary."""
        if places is None:
            places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = jnp.take(self.embedding, tokens, axis=0)
        if table is None:
            rotation = rotations(places, self.config.head_width)
        else:
            x, rotation = x + jnp.take(table, places, axis=0), None
        return shard_looked_up(x.astype(jnp.dtype(self.config.dtype))), rotation

    def __call__(
        self,
        texts: Int[Array, "B S"],
        there: Bool[Array, "B S"],
        tokens: Int[Array, "B L"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """Final hidden states of `tokens`, which see earlier ones and all of their text.

        `there` says which text tokens are no padding: at least one per row. With a key,
        `config.dropout` applies in both stacks.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        to_text = partial(attend, mask=there[:, None, None])
        states = self._encode(texts, to_text, keys[0])
        # The rows that parameters are made with are too short for kernels.
        kernel = kernel_for(self.config, tokens.shape[1], one_segment=True)
        backend = "xla" if self.is_initializing() else kernel
        to_row = row_attention(jnp.ones_like(tokens), backend)
        x, rotation = self._embed(tokens, self.position)

        def body(block, x, key):
            x = block.row_with_source(x, to_row, rotation, key, states, to_text)
            return shard_rows(x), None

        layers = self.config.layers
        x, _ = scan_layers(self.layers, self.config, layers, body, x, layer_keys(keys[1], layers))
        return self.final_norm(x)

    def _encode(self, texts, to_text, key):
        """The text's states [B S D]; every token sees all that are there."""
        x, rotation = self._embed(texts, self.text_position)

        def body(block, x, key):
            return shard_rows(block.row(x, to_text, rotation, key)[0]), None

        layers = self.encoder_layers
        x, _ = scan_layers(self.encoder, self.config, layers, body, x, layer_keys(key, layers))
        return self.encoder_norm(x)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every id as float32, by the embedding or the head's own table."""
        return embeddings.logits(hidden, self.head)

    @property
    def reads_forward(self) -> bool:
        """Whether tokens see earlier ones only: a prompt's keys and values begin a longer one's."""
        return False

    @property
    def longest_prompt(self) -> int:
        """Tokens that `prefill` reads at most."""
        return self.text_tokens

    @nn.nowrap
    def room(self, prompt: int) -> int:
        """How many tokens follow a caption and the id that starts the image, `prompt` in all."""
        return self.image_tokens if prompt - 1 <= self.text_tokens else 0

    def prefill(
        self, tokens: Int[Array, "P S"], lengths: Int[Array, " P"]
    ) -> tuple[Float[Array, "P S D"], tuple[KeyValues, ...]]:
        """The states of captions, and their keys and values for the cross-attention of every layer.

        Beyond `lengths` is padding, which nothing reads.
        """
        there = jnp.arange(tokens.shape[1]) < jnp.maximum(lengths, 1)[:, None]
        states = self._encode(tokens, partial(attend, mask=there[:, None, None]), None)

        return states, tuple(block.keys_values(states) for block in self.layer)

    def extend(
        self, tokens: Int[Array, "B T"], cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states of T more image tokens per row, and the cache with them in it.

        Its prefix is what `prefill` found. Tokens beyond an image's get the last position, as in
        `Decoder.extend`.
        """
        places = cache.lengths[:, None] + jnp.arange(tokens.shape[1])
        places = jnp.minimum(places, self.image_tokens - 1)
        x, rotation = self._embed(tokens, self.position, places)

        suffix: list[KeyValues] = []
        for block, kept in zip(self.layer, cache.layers, strict=True):
            x, grown = block.extend(x, kept, rotation)
            x, suffix = shard_rows(x), [*suffix, grown]
        return self.final_norm(x), cache.extended(suffix, tokens)
