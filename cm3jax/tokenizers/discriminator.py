"""The adversary of the image tokenizer: which patches of an image look drawn by the decoder?

PatchGAN (arXiv 1611.07004) as VQGAN uses it, with two differences: GroupNorm instead of BatchNorm,
so that an image's verdicts depend only on that image and there is no state beside the
parameters, and padding that keeps one verdict per 2 ** layers pixels along a side.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm3jax.shapes import Array, Float

_KERNEL = nn.with_logical_partitioning(
    nn.initializers.normal(0.02), (None, None, "conv_in", "conv_out")
)


class Discriminator(nn.Module):
    """Pixels in [-1, 1] to a grid of verdicts: positive for real, negative for drawn."""

    channels: int
    """Channels of the first level; twice as many at each further one, up to 8 times."""
    layers: int
    """Levels that halve the side."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B y x"]:
        """One verdict per patch, unbounded."""
        x = nn.leaky_relu(_conv(self.channels, 2, "conv_in")(pixels), 0.2)
        for level in range(1, self.layers + 1):
            channels = self.channels * min(2**level, 8)
            stride = 2 if level < self.layers else 1
            x = _conv(channels, stride, f"level_{level}_conv")(x)
            groups = math.gcd(32, channels)
            x = nn.GroupNorm(groups, use_fast_variance=False, name=f"level_{level}_norm")(x)
            x = nn.leaky_relu(x, 0.2)
        return _conv(1, 1, "conv_out", shard=False)(x)[..., 0]


def _conv(channels: int, stride: int, name: str, shard: bool = True) -> nn.Module:
    init = _KERNEL if shard else nn.initializers.normal(0.02)
    return nn.Conv(channels, (4, 4), strides=stride, kernel_init=init, name=name)


def discriminator_loss(real: Float[Array, "*B"], drawn: Float[Array, "*B"]) -> Float[Array, ""]:
    """Hinge loss of verdicts on real and drawn patches; 0 where all are beyond 1 and -1."""
    return (nn.relu(1.0 - real).mean() + nn.relu(1.0 + drawn).mean()) / 2


def generator_loss(drawn: Float[Array, "*B"]) -> Float[Array, ""]:
    """What the decoder wants lower: the verdicts on what it drew, negated."""
    return -drawn.mean()


def adaptive_weight(
    wanted: Float[Array, "..."], adversarial: Float[Array, "..."]
) -> Float[Array, ""]:
    """By how much to multiply the adversarial loss so that both losses pull alike.

    Takes both losses' gradients at the decoder's last layer (arXiv 2012.09841, equation 7, with
    taming-transformers' 1e-4 and limit of 1e4). No gradient passes.
    """
    ratio = jnp.linalg.norm(wanted.ravel()) / (jnp.linalg.norm(adversarial.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))
