"""The tokenizer bridge: pixels and text pieces <-> ids of the one vocabulary, inside a program.

Everything has static shapes and runs under jit on any mesh, so that bridge, sequence builder and
decoder make one program from pixels to loss. SentencePiece itself stays on the host: texts come in
as padded pieces.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cm3jax.config import VQGANConfig
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Float, Int
from cm3jax.tokenizers.vqgan_model import VQGAN


@struct.dataclass(eq=False)
class PairIds:
    """Rendered documents, padded at their end."""

    ids: Int[Array, "B L"]
    """Text, break, codes (section 2.1), then `vocab.pad`; int32."""
    lengths: Int[Array, " B"]
    """Ids before the padding."""


class TokenizerBridge(nn.Module):
    """A VQGAN that speaks vocabulary ids; its variables are those of a `VQGAN`, unchanged.

    Pixels are in [-1, 1] (`cm3jax.tokenizers.image_tokenizer.to_pixels`); T = vocab.image_tokens.
    """

    config: VQGANConfig
    vocab: Vocab

    def setup(self):
        """The tokenizer, whose variables are the bridge's own."""
        self.tokenizer = VQGAN(self.config)
        nn.share_scope(self, self.tokenizer)

    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B Y X 3"]:
        """Through the ids and back; what `init` traces."""
        return self.decode_images(self.encode_images(pixels))

    def encode_images(self, pixels: Float[Array, "B Y X 3"]) -> Int[Array, "B T"]:
        """Image ids, row-major."""
        return self.tokenizer.encode(pixels) + self.vocab.first_image

    def decode_images(self, ids: Int[Array, "B T"]) -> Float[Array, "B Y X 3"]:
        """Images of image ids, not clipped; ids of anything else give undefined patches."""
        return self.tokenizer.decode(ids - self.vocab.first_image)

    def encode_pairs(
        self,
        pieces: Int[Array, "B W"],
        lengths: Int[Array, " B"],
        pixels: Float[Array, "B Y X 3"],
    ) -> PairIds:
        """Documents of a text and an image each; equals `document.render`.

        `pieces` are numbered within the text tokenizer, `lengths` (0..W) of them valid. A row
        without text is only an image, without a break.
        """
        width, codes = pieces.shape[1], self.encode_images(pixels)
        break_ = jnp.full((len(codes), 1), self.vocab.break_, codes.dtype)
        tail = jnp.concatenate([break_, codes], axis=1)
        total = width + tail.shape[1]
        is_text = jnp.arange(width) < lengths[:, None]
        texts = jnp.where(is_text, pieces + self.vocab.first_text, self.vocab.pad)
        texts = jnp.pad(texts, ((0, 0), (0, total - width)), constant_values=self.vocab.pad)
        # The break of an image without text is sent out of range, where the scatter drops it.
        no_text = (lengths == 0)[:, None]
        slots = lengths[:, None] + jnp.arange(tail.shape[1]) - no_text
        slots = jnp.where(slots < 0, total, slots)
        place = jax.vmap(lambda row, slots, values: row.at[slots].set(values, mode="drop"))
        ids = place(texts.astype(jnp.int32), slots, tail)
        return PairIds(ids, lengths + tail.shape[1] - no_text[:, 0])
