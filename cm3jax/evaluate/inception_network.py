"""The Inception v3 of FID in Flax Linen, with the names of pytorch-fid's parameters.

It is TensorFlow's network of 2015, whose graph every FID is defined by: average pools leave padding
out, and the last block pools by maximum. Only what leads to the 2,048 pooled features is here.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from cm3jax.shapes import Array, Float

SIZE = 299
"""Pixels a side of what the network reads."""

Layer = tuple[str, int, int, int]
"""Name, output channels at full width, rows and columns of a convolution's kernel. A kernel of 0x0
stands for two side by side, 1x3 (name + `a`) and 3x1 (name + `b`)."""


class _Conv(nn.Module):
    features: int
    kernel: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B _ _ D"]:
        stride = (self.stride, self.stride)
        x = nn.Conv(self.features, self.kernel, stride, self.padding, use_bias=False, name="conv")(
            x
        )
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


class _Mixed(nn.Module):
    """Branches side by side, and a pool among them."""

    width: int
    branches: Sequence[Sequence[Layer]]
    pooled: int = 0
    """Channels of the convolution after the pool; 0 halves the image."""
    largest: bool = False
    """Pool by maximum instead of average."""

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B _ _ D"]:
        halves = not self.pooled
        parts = []
        for layers in self.branches:
            part = x
            for layer in layers:
                last = layer is layers[-1]
                part = self._layer(part, layer, 2 if halves and last else 1)
            parts.append(part)
        if halves:
            return jnp.concatenate([*parts, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)
        if self.largest:
            pool = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        else:
            pool = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
        parts.append(self._layer(pool, ("branch_pool", self.pooled, 1, 1), 1))
        return jnp.concatenate(parts, axis=-1)

    def _layer(self, x: Float[Array, "B Y X C"], layer: Layer, stride: int):
        name, features, rows, columns = layer
        if not rows:
            pair = [(f"{name}a", features, 1, 3), (f"{name}b", features, 3, 1)]
            return jnp.concatenate([self._layer(x, half, stride) for half in pair], axis=-1)
        padding = "VALID" if stride == 2 else "SAME"
        features = features * self.width // 32
        return _Conv(features, (rows, columns), stride, padding, name=name)(x)


_ONE = ("branch1x1", 64, 1, 1)
_FIVE = (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5))
_DOUBLE = (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3))
_A = ((_ONE,), _FIVE, _DOUBLE)
_B = ((("branch3x3", 384, 3, 3),), _DOUBLE)
_D = (
    (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
    (
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, 1, 7),
        ("branch7x7x3_3", 192, 7, 1),
        ("branch7x7x3_4", 192, 3, 3),
    ),
)
_E = (
    (("branch1x1", 320, 1, 1),),
    (("branch3x3_1", 384, 1, 1), ("branch3x3_2", 384, 0, 0)),
    (("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3), ("branch3x3dbl_3", 384, 0, 0)),
)


def _c(inner: int) -> Sequence[Sequence[Layer]]:
    """Branches that take a 7x7 window apart, `inner` channels wide on the way."""
    return (
        (("branch1x1", 192, 1, 1),),
        (
            ("branch7x7_1", inner, 1, 1),
            ("branch7x7_2", inner, 1, 7),
            ("branch7x7_3", 192, 7, 1),
        ),
        (
            ("branch7x7dbl_1", inner, 1, 1),
            ("branch7x7dbl_2", inner, 7, 1),
            ("branch7x7dbl_3", inner, 1, 7),
            ("branch7x7dbl_4", inner, 7, 1),
            ("branch7x7dbl_5", 192, 1, 7),
        ),
    )


class Inception(nn.Module):
    """Pixels in [-1, 1] to features; `width` 32 is the network of FID, 2 the narrowest."""

    width: int = 32

    @nn.compact
    def __call__(self, pixels: Float[Array, "B 299 299 3"]) -> Float[Array, "B D"]:
        """Features, 64 per unit of width, averaged over the image."""

        def conv(x, name, features, side, stride=1, padding="VALID"):
            features = features * self.width // 32
            return _Conv(features, (side, side), stride, padding, name=name)(x)

        def mixed(x, name, branches, pooled=0, largest=False):
            return _Mixed(self.width, branches, pooled, largest, name=f"Mixed_{name}")(x)

        x = conv(pixels, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = conv(x, "Conv2d_2a_3x3", 32, 3)
        x = conv(x, "Conv2d_2b_3x3", 64, 3, padding="SAME")
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv(x, "Conv2d_3b_1x1", 80, 1)
        x = conv(x, "Conv2d_4a_3x3", 192, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = mixed(x, name, _A, pooled)
        x = mixed(x, "6a", _B)
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = mixed(x, name, _c(inner), 192)
        x = mixed(x, "7a", _D)
        x = mixed(x, "7b", _E, 192)
        x = mixed(x, "7c", _E, 192, largest=True)
        return x.mean((1, 2))
