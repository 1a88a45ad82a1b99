"""The schedule, the decay mask, and one AdamW update by hand."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import OptimConfig
from cm3jax.optim import decays, learning_rate, optimizer


def box(shape, *names):
    return nn.LogicallyPartitioned(jnp.ones(shape), names)


def test_learning_rate_rises_and_falls_linearly():
    rate = learning_rate(OptimConfig(peak_lr=1.0, warmup_steps=10, end_lr_ratio=0.1), steps=110)
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
    updates, _ = transform.update(gradients, transform.init(params), params)
    # Adam's first step is the gradient's sign; the rate of update 1 of 2 warm-up steps is 0.05.
    assert float(updates["matrix"][0, 0]) == pytest.approx(-0.05 * (1 + 0.5 * 2.0))
    assert float(updates["vector"][0]) == pytest.approx(0.05)


def test_clipping_bounds_the_global_norm():
    config = OptimConfig(peak_lr=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1.0, eps=1.0)
    boxed = {"a": box((1,), "embed"), "b": box((1,), "embed")}
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    transform = optimizer(config, 10, boxed)
    gradients = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}
    updates, _ = transform.update(gradients, transform.init(params), params)
    # With eps 1 the first update is g / (|g| + 1), and the clipped gradients are 0.6 and 0.8.
    rate = float(learning_rate(config, 10)(1))
    assert float(updates["a"][0]) == pytest.approx(-rate * 0.6 / 1.6, rel=1e-4)
    assert float(updates["b"][0]) == pytest.approx(-rate * 0.8 / 1.8, rel=1e-4)
