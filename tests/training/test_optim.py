"""The schedule, the decay mask, and one AdamW update by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import CurriculumConfig, OptimConfig
from cm3jax.training.optim import decays, learning_rate, optimizer


def box(shape, *names):
    return nn.LogicallyPartitioned(jnp.asarray(np.ones(shape, np.float32)), names)


def test_each_stage_scales_the_learning_rate():
    config = OptimConfig(peak_lr=1.0, warmup_steps=10, end_lr_ratio=0.1)
    stages = CurriculumConfig(starts=(0, 5, 60), rate=(1.0, 0.5, 2.0))
    plain, staged = (jax.jit(learning_rate(config, 110, *more)) for more in ((), (stages,)))
    for step, factor in ((1, 1.0), (5, 1.0), (6, 0.5), (60, 0.5), (61, 2.0), (110, 2.0)):
        assert float(staged(step)) == pytest.approx(factor * float(plain(step)), rel=1e-6)
    same = jax.jit(learning_rate(config, 110, CurriculumConfig(starts=(0, 5), documents=(1, 2))))
    assert all(float(same(step)) == float(plain(step)) for step in range(1, 111))


def test_learning_rate_rises_and_falls_linearly():
    config = OptimConfig(peak_lr=1.0, warmup_steps=10, end_lr_ratio=0.1)
    rate = jax.jit(learning_rate(config, steps=110))
    steps, expected = [0, 1, 5, 10, 60, 110, 200], [0, 0.1, 0.5, 1.0, 0.55, 0.1, 0.1]
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-6)


def test_only_matrices_decay():
    boxed = {
        "table": box((8, 4), "vocab", "embed"),
        "kernel": box((3, 4, 4), "layers", "embed", "mlp"),
        "norm": {"scale": box((3, 4), "layers", "embed")},
        "query": {"bias": box((2, 2), "heads", "head")},
        "scale": jnp.ones(()),
        "plain": jnp.ones((4, 4)),
    }
    assert decays(boxed) == {
        "table": True,
        "kernel": True,
        "norm": {"scale": False},
        "query": {"bias": False},
        "scale": False,
        "plain": True,
    }


def test_first_update_by_hand():
    config = OptimConfig(peak_lr=0.1, warmup_steps=2, weight_decay=0.5, clip_norm=1.0, eps=0.0)
    boxed = {"matrix": box((1, 1), "embed", "mlp"), "vector": box((1,), "embed")}
    params = {"matrix": jnp.full((1, 1), 2.0), "vector": jnp.full((1,), 2.0)}
    transform = optimizer(config, 10, boxed)
    gradients = {"matrix": jnp.full((1, 1), 30.0), "vector": jnp.full((1,), -40.0)}
    updates, _ = jax.jit(transform.update)(gradients, transform.init(params), params)
    # Adam's first step is the gradient's sign; the rate of update 1 of 2 warm-up steps is 0.05.
    assert float(updates["matrix"][0, 0]) == pytest.approx(-0.05 * (1 + 0.5 * 2.0))
    assert float(updates["vector"][0]) == pytest.approx(0.05)


def test_muon_takes_the_matrices_of_every_layer_and_adam_the_rest():
    kernel = ("layers", "embed", "heads", "head")
    boxed = {
        "embedding": box((5, 4), "vocab", "embed"),
        "into": {"kernel": box((2, 4, 2, 3), *kernel)},
        "out": {"kernel": box((2, 2, 3, 4), "layers", "heads", "head", "embed")},
    }
    config = OptimConfig(
        method="muon", peak_lr=0.1, warmup_steps=1, weight_decay=0.0, clip_norm=1e9
    )
    transform = optimizer(config, 10, boxed)
    params = nn.meta.unbox(boxed)
    random = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), params)
    updates, _ = jax.jit(transform.update)(gradients, transform.init(params), params)
    # Adam's first step with Nesterov's momentum, both terms corrected for their bias.
    expected = -0.1 * np.sign(gradients["embedding"]) * (0.9 * 0.1 / (1 - 0.9**2) + 1)
    np.testing.assert_allclose(updates["embedding"], expected, rtol=1e-4)
    for name, gradient in (("into", gradients["into"]), ("out", gradients["out"])):
        for layer in range(2):
            shape = (4, 6) if name == "into" else (6, 4)
            matrix = np.asarray(gradient["kernel"][layer]).reshape(shape)
            left, _, right = np.linalg.svd(matrix, full_matrices=False)
            # All singular values become about 1, times 0.2 * sqrt(6) and the rate.
            update = np.asarray(updates[name]["kernel"][layer]).reshape(shape)
            values = np.diag(left.T @ update @ right.T) / (-0.1 * 0.2 * 6**0.5)
            assert (np.abs(values - 0.95) < 0.3).all()


def test_clipping_bounds_the_global_norm():
    config = OptimConfig(peak_lr=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1.0, eps=1.0)
    boxed = {"a": box((1,), "embed"), "b": box((1,), "embed")}
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    transform = optimizer(config, 10, boxed)
    gradients = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}
    updates, _ = jax.jit(transform.update)(gradients, transform.init(params), params)
    # With eps 1 the first update is g / (|g| + 1), and the clipped gradients are 0.6 and 0.8.
    rate = float(learning_rate(config, 10)(1))
    assert float(updates["a"][0]) == pytest.approx(-rate * 0.6 / 1.6, rel=1e-4)
    assert float(updates["b"][0]) == pytest.approx(-rate * 0.8 / 1.8, rel=1e-4)
