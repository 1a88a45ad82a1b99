"""How well codes reproduce images (PSNR, SSIM), and how much of the codebook they use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.shapes import Array, Float, Int, UInt8

_ROUNDING = 1.0 / 12.0
"""Mean squared error of rounding to bytes: no error counts as less, so that PSNR stays finite."""
_WINDOW, _SIGMA = 11, 1.5


def psnr(true: UInt8[Array, "B Y X 3"], remade: UInt8[Array, "B Y X 3"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio of each image in dB; 58.9 for one that came back exactly."""
    error = jnp.square(true.astype(jnp.float32) - remade.astype(jnp.float32)).mean((1, 2, 3))
    return 10.0 * jnp.log10(255.0**2 / jnp.maximum(error, _ROUNDING))


def ssim(true: UInt8[Array, "B Y X 3"], remade: UInt8[Array, "B Y X 3"]) -> Float[Array, " B"]:
    """Structural similarity of each image (Wang et al. 2004), the mean over its three colours.

    A Gaussian window of 11 pixels (the side of smaller images) and deviation 1.5, at places where
    it fits whole.
    """
    a, b = true.astype(jnp.float32), remade.astype(jnp.float32)
    low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + low) / (mean_a**2 + mean_b**2 + low)
    structure = (2 * covariance + high) / (var_a + var_b + high)
    return (luminance * structure).mean((1, 2, 3))


def _blur(x: Float[Array, "B Y X 3"]) -> Float[Array, "B y x 3"]:
    for axis in (1, 2):
        width = min(_WINDOW, x.shape[axis])
        window = np.exp(-0.5 * ((np.arange(width) - (width - 1) / 2) / _SIGMA) ** 2)
        window /= window.sum()
        count = x.shape[axis] - width + 1
        parts = (
            float(weight) * jax.lax.slice_in_dim(x, start, start + count, axis=axis)
            for start, weight in enumerate(window)
        )
        x = functools.reduce(jnp.add, parts)
    return x


def code_usage(codes: Int[Array, "B T"], count: int) -> dict[str, Float[Array, ""]]:
    """Share of the codebook that a batch uses, and its perplexity (codes, were all used alike)."""
    shares = jnp.bincount(codes.reshape(-1), length=count) / codes.size
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(shares), 0.0))
    return {"code_usage": (shares > 0).mean(), "code_perplexity": jnp.exp(entropy)}
