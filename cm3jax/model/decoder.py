"""The autoregressive decoder of CM3Leon (section 2.3): OPT-like, pre-norm, learned positions.

Fields of `DecoderConfig` turn it into its relatives.

Three ways through the same parameters: `__call__` for training rows, `prefill` for prompts and
`extend` for the tokens that follow them. The last two read the layers' parameters apart
(`decode.params.as_read`).
"""

import flax.linen as nn
import jax.numpy as jnp

from cm3jax.config import DecoderConfig
from cm3jax.model import embeddings
from cm3jax.model.attention import row_attention
from cm3jax.model.block import Block, layer_keys, scan_layers
from cm3jax.model.cache import NONE, Cache, KeyValues
from cm3jax.model.embeddings import position_table, vocabulary_tables
from cm3jax.model.kernels import kernel_for
from cm3jax.model.layers import Norm, Projection, rotations
from cm3jax.partition import shard_looked_up, shard_rows
from cm3jax.shapes import Array, Float, Int, Key


class Decoder(nn.Module):
    """Token ids to hidden states and logits over one vocabulary of text, images and specials.

    Parameters are float32 and stacked over layers ([N, ...]); activations have `config.dtype`.
    """

    config: DecoderConfig
    vocab_size: int
    one_segment: bool = False
    """Whether no row holds several samples, so that more kernels may attend over it."""

    def setup(self):
        """Create the tables and the stacked layers."""
        c = self.config
        self.embedding, self.head = vocabulary_tables(self, c, self.vocab_size)
        self.position = position_table(self, "position", c, c.context)
        if c.token_shift:
            sides = ((c.width,), (c.width,), ("embed", "shifted"))
            self.shift = Projection(*sides, c.init_std, jnp.dtype(c.dtype))
        self.layers = Block(c)
        self.layer = [Block(c) for _ in range(c.layers)]
        self.final_norm = Norm(c.norm)

    def _embed(self, tokens, before, positions):
        """The first layer's input, and the rotation of queries and keys if positions are rotary.

        `before` are the ids before the tokens, `NONE` where there is none.
        """
        x, rotation = jnp.take(self.embedding, tokens, axis=0), None
        if self.config.token_shift:
            shifted = jnp.take(self.embedding, jnp.maximum(before, 0), axis=0)
            x = x + self.shift(jnp.where((before == NONE)[..., None], 0.0, shifted))
        if self.position is None:
            rotation = rotations(positions, self.config.head_width)
        else:
            x = x + jnp.take(self.position, positions, axis=0)
        return shard_looked_up(x.astype(jnp.dtype(self.config.dtype))), rotation

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        segments: Int[Array, "B L"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """Final hidden states of packed rows; tokens see earlier ones of their own segment.

        With a key, `config.dropout` applies.
        """
        # The rows that parameters are made with are too short for kernels.
        kernel = kernel_for(self.config, tokens.shape[1], self.one_segment)
        attend = row_attention(segments, "xla" if self.is_initializing() else kernel)
        begins = segments != _before(segments, jnp.full_like(segments[:, 0], NONE))
        before = jnp.where(begins, NONE, _before(tokens, tokens[:, 0]))
        x, rotation = self._embed(tokens, before, positions)

        def body(block, x, key):
            return shard_rows(block.row(x, attend, rotation, key)[0]), None

        layers = self.config.layers
        keys = layer_keys(key, layers)
        x, _ = scan_layers(self.layers, self.config, layers, body, x, keys)
        return self.final_norm(x)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every id as float32, by the embedding or the head's own table."""
        return embeddings.logits(hidden, self.head)

    def prefill(
        self, tokens: Int[Array, "P S"], lengths: Int[Array, " P"]
    ) -> tuple[Float[Array, "P S D"], tuple[KeyValues, ...]]:
        """Final hidden states of prompts and the keys and values of every layer.

        Prompts are at the left; beyond `lengths` is padding, which no later token reads.
        """
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # Prompts have any length, and are read on other hardware than the model was trained on.
        attend = row_attention((places < lengths[:, None]).astype(jnp.int32), "xla")
        first = jnp.full(len(tokens), NONE, tokens.dtype)
        x, rotation = self._embed(tokens, _before(tokens, first), places)

        found: list[KeyValues] = []
        for block in self.layer:
            x, kept = block.row(x, attend, rotation)
            x, found = shard_rows(x), [*found, kept]
        return self.final_norm(x), tuple(found)

    @property
    def reads_forward(self) -> bool:
        """Whether tokens see earlier ones only: a prompt's keys and values begin a longer one's."""
        return True

    @property
    def longest_prompt(self) -> int:
        """Tokens that `prefill` reads at most."""
        return self.config.context

    @nn.nowrap
    def room(self, prompt: int) -> int:
        """How many tokens fit after a prompt of `prompt` tokens; negative if it is too long."""
        return self.config.context - prompt

    def extend(
        self, tokens: Int[Array, "B T"], cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states of T more tokens per row, and the cache with them in it.

        A row's positions go on where its prompt ends. Tokens beyond the context get its last one:
        rows that are done still run, and nobody reads what they compute.
        """
        first = jnp.repeat(cache.prefix_lengths, cache.samples) + cache.lengths
        places = first[:, None] + jnp.arange(tokens.shape[1])
        before = _before(tokens, cache.newest)
        x, rotation = self._embed(tokens, before, jnp.minimum(places, self.config.context - 1))

        suffix: list[KeyValues] = []
        for block, kept in zip(self.layer, cache.layers, strict=True):
            x, grown = block.extend(x, kept, rotation)
            x, suffix = shard_rows(x), [*suffix, grown]
        return self.final_norm(x), cache.extended(suffix, tokens)


def _before(tokens: Int[Array, "B T"], first: Int[Array, " B"]) -> Int[Array, "B T"]:
    """The id before each token, of which `first` is that of the first."""
    return jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1)
