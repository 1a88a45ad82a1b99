"""The image tokenizer's network: pixels -> a grid of codes -> pixels.

The architecture is taming-transformers' VQGAN, which Make-A-Scene's tokenizer follows and CM3Leon
reads (arXiv 2309.02591, section 2.1): residual blocks with GroupNorm and swish, attention in the
middle, halving and doubling between levels. `kernel=1` makes the patch-local variant, in which
every code depends only on its own patch, and every patch of the output only on its own code.

What trains it is in `cm3jax.learners.vqgan`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cm3jax.config import VQGANConfig
from cm3jax.shapes import Array, Float, Int
from cm3jax.tokenizers.quantiser import VectorQuantiser


@struct.dataclass(eq=False)
class VQOutput:
    """One pass through the tokenizer."""

    reconstruction: Float[Array, "B Y X 3"]
    """Pixels, about -1..1."""
    codes: Int[Array, "B T"]
    """Row-major codes."""
    commitment: Float[Array, ""]
    """The quantiser's loss for the encoder, unweighted."""
    following: Float[Array, ""]
    """Its loss for a codebook that follows by gradients."""


class VQGAN(nn.Module):
    """Encoder, quantiser and decoder. Pixels are in [-1, 1]; T = grid * grid codes, row-major."""

    config: VQGANConfig

    def setup(self):
        """Encoder, quantiser and decoder."""
        self.encoder = PixelEncoder(self.config)
        self.quantiser = VectorQuantiser(self.config)
        self.decoder = PixelDecoder(self.config)

    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> VQOutput:
        """Reconstruct; the gradient passes the quantiser straight through."""
        quantised = self.quantiser(self.encoder(pixels))
        return VQOutput(
            reconstruction=self.decoder(quantised.vectors),
            codes=quantised.codes.reshape(len(pixels), -1),
            commitment=quantised.commitment,
            following=quantised.following,
        )

    def encode(self, pixels: Float[Array, "B Y X 3"]) -> Int[Array, "B T"]:
        """Codes of images."""
        return self.quantiser.nearest(self.encoder(pixels)).reshape(len(pixels), -1)

    def decode(self, codes: Int[Array, "B T"]) -> Float[Array, "B Y X 3"]:
        """Images of codes; not clipped to [-1, 1]."""
        side = self.config.grid
        return self.decoder(self.quantiser.lookup(codes).reshape(len(codes), side, side, -1))


class PixelEncoder(nn.Module):
    """Pixels to a grid of vectors of width `code_width`."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B G G C"]:
        """Encode."""
        c = self.config
        x = _conv(c, c.channels, "conv_in")(space_to_depth(pixels, c.patch))
        for level, multiplier in enumerate(c.multipliers):
            for block in range(c.blocks):
                x = ResBlock(c, c.channels * multiplier, name=f"down_{level}_block_{block}")(x)
                if c.attends_at(level):
                    x = SelfAttention(c, name=f"down_{level}_attn_{block}")(x)
            if level < len(c.multipliers) - 1:
                x = Downsample(name=f"down_{level}_downsample")(x)
        x = Middle(c, name="mid")(x)
        x = _conv(c, c.latents, "conv_out")(nn.swish(_norm(c, "norm_out")(x)))
        return _conv(c, c.code_width, "quant_conv", kernel=1)(x)


class PixelDecoder(nn.Module):
    """A grid of codebook entries to pixels: the encoder mirrored, one block more per level."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, entries: Float[Array, "B G G C"]) -> Float[Array, "B Y X 3"]:
        """Decode."""
        c = self.config
        x = _conv(c, c.latents, "post_quant_conv", kernel=1)(entries)
        x = _conv(c, c.channels * c.multipliers[-1], "conv_in")(x)
        x = Middle(c, name="mid")(x)
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            for block in range(c.blocks + 1):
                x = ResBlock(c, c.channels * multiplier, name=f"up_{level}_block_{block}")(x)
                if c.attends_at(level):
                    x = SelfAttention(c, name=f"up_{level}_attn_{block}")(x)
            if level > 0:
                x = Upsample(c, name=f"up_{level}_upsample")(x)
        x = _conv(c, 3 * c.patch**2, "conv_out")(nn.swish(_norm(c, "norm_out")(x)))
        return depth_to_space(x, c.patch)


class Middle(nn.Module):
    """The lowest level's two residual blocks, with attention between them if asked for."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
        """Same shape."""
        x = ResBlock(self.config, x.shape[-1], name="block_1")(x)
        if self.config.attention:
            x = SelfAttention(self.config, name="attn_1")(x)
        return ResBlock(self.config, x.shape[-1], name="block_2")(x)


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut if the width changes."""

    config: VQGANConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X D"]:
        """Same height and width."""
        c = self.config
        h = _conv(c, self.channels, "conv1")(nn.swish(_norm(c, "norm1")(x)))
        h = _conv(c, self.channels, "conv2")(nn.swish(_norm(c, "norm2")(h)))
        if x.shape[-1] != self.channels:
            x = _conv(c, self.channels, "nin_shortcut", kernel=1)(x)
        return x + h


class SelfAttention(nn.Module):
    """One head over all positions, width of the channels."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
        """Same shape."""
        c, (b, y, w, d) = self.config, x.shape
        h = _norm(c, "norm")(x)
        q, k, v = (_conv(c, d, name, kernel=1)(h).reshape(b, y * w, 1, d) for name in "qkv")
        out = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + _conv(c, d, "proj_out", kernel=1)(out)


class Downsample(nn.Module):
    """Halve the sides by a strided convolution; taming pads right and bottom only."""

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y2 X2 C"]:
        """Same channels."""
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        conv = nn.Conv(
            x.shape[-1], (3, 3), strides=2, padding="VALID", kernel_init=_KERNEL, name="conv"
        )
        return conv(x)


class Upsample(nn.Module):
    """Double the sides by repetition, then a convolution."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y2 X2 C"]:
        """Same channels."""
        return _conv(self.config, x.shape[-1], "conv")(x.repeat(2, axis=1).repeat(2, axis=2))


def space_to_depth(x: Float[Array, "B Y X C"], patch: int) -> Float[Array, "B y x c"]:
    """A patch's pixels as its channels, [B, Y/patch, X/patch, patch * patch * C].

    Their order is pixel row, pixel column, colour.
    """
    b, y, w, c = x.shape
    x = x.reshape(b, y // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, y // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "B Y X C"], patch: int) -> Float[Array, "B y x c"]:
    """The inverse of `space_to_depth`."""
    b, y, w, c = x.shape
    x = x.reshape(b, y, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, y * patch, w * patch, c // patch**2)


_KERNEL = nn.with_logical_partitioning(
    nn.initializers.lecun_normal(), (None, None, "conv_in", "conv_out")
)
_MATRIX = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("conv_in", "conv_out"))


def _conv(config: VQGANConfig, channels: int, name: str, kernel: int | None = None) -> nn.Module:
    kernel = kernel or config.kernel
    if kernel == 1:  # A matrix product, whose gradient is three times as fast on a CPU.
        return nn.Dense(channels, kernel_init=_MATRIX, name=name)
    return nn.Conv(channels, (kernel, kernel), padding="SAME", kernel_init=_KERNEL, name=name)


def _norm(config: VQGANConfig, name: str) -> nn.Module:
    """GroupNorm as in taming; over the channels of each position where patches must not mix."""
    if config.kernel == 1:
        return nn.LayerNorm(epsilon=1e-6, name=name)
    groups = math.gcd(32, config.channels)
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, use_fast_variance=False, name=name)
