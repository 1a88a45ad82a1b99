"""PSNR, SSIM and code usage against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.tokenizers.fidelity import code_usage, psnr, ssim


def pictures():
    draw = np.random.default_rng(0)
    true = draw.integers(0, 256, (3, 13, 14, 3), np.uint8)
    noise = draw.normal(0, (5, 20, 60), (13, 14, 3, 3)).transpose(3, 0, 1, 2)
    return true, np.clip(true + noise, 0, 255).astype(np.uint8)


def test_psnr():
    true, remade = pictures()
    seen = jax.jit(psnr)(jnp.asarray(true), jnp.asarray(remade))
    for row in range(3):
        error = np.mean((true[row].astype(float) - remade[row].astype(float)) ** 2)
        np.testing.assert_allclose(seen[row], 20 * np.log10(255 / np.sqrt(error)), rtol=1e-5)
    np.testing.assert_allclose(
        psnr(*2 * [jnp.asarray(true)]), 10 * np.log10(12 * 255**2), rtol=1e-5
    )


def plain_ssim(a, b):
    """Of two images [Y, X]: the index of each window of 11 x 11, one after another."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = (p[row : row + 11, column : column + 11] for p in (a, b))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x = (window * (x - mean_x) ** 2).sum()
            var_y = (window * (y - mean_y) ** 2).sum()
            both = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 2.55**2, 7.65**2
            top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
            values.append(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return np.mean(values)


def test_ssim():
    true, remade = pictures()
    measure = jax.jit(ssim)
    seen = np.asarray(measure(jnp.asarray(true), jnp.asarray(remade)))
    a, b = true.astype(float), remade.astype(float)
    for row in range(3):
        colours = [plain_ssim(a[row, ..., c], b[row, ..., c]) for c in range(3)]
        np.testing.assert_allclose(seen[row], np.mean(colours), atol=1e-4)
    assert seen[0] > seen[1] > seen[2]
    np.testing.assert_allclose(measure(*2 * [jnp.asarray(true)]), 1, rtol=1e-5)
    small = jnp.asarray(true[:, :8, :8])
    np.testing.assert_allclose(measure(small, small), 1, rtol=1e-5)


def test_code_usage():
    usage = code_usage(jnp.array([[0, 0, 1, 1], [2, 2, 3, 3]]), 16)
    np.testing.assert_allclose(usage["code_usage"], 4 / 16)
    np.testing.assert_allclose(usage["code_perplexity"], 4, rtol=1e-5)
