"""The discriminator and the losses around it, against plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.testing import random_variables
from cm3jax.tokenizers.discriminator import (
    Discriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)


def test_hinge_losses():
    real = jnp.array([[2.0, 0.5], [-1.0, 1.0]])
    drawn = jnp.array([[-2.0, -0.5], [3.0, -1.0]])
    # Real patches cost 0, 0.5, 2, 0 and drawn ones 0, 0.5, 4, 0.
    assert discriminator_loss(real, drawn) == pytest.approx((2.5 / 4 + 4.5 / 4) / 2)
    assert generator_loss(drawn) == pytest.approx(0.5 / 4)


def test_the_adaptive_weight_makes_both_pull_alike():
    wanted, other = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.5]])
    weight = adaptive_weight(wanted, other)
    assert weight == pytest.approx(5 / 0.5001, rel=1e-5)
    assert adaptive_weight(1e6 * wanted, 0 * other) == 1e4
    assert not jax.grad(lambda x: adaptive_weight(x, other))(wanted).any()


def test_a_verdict_per_patch_depends_only_on_its_picture():
    model = Discriminator(channels=8, layers=2)
    pictures = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3), minval=-1.0)
    variables = random_variables(model.init, pictures)
    verdicts = jax.jit(model.apply)(variables, pictures)
    assert verdicts.shape == (3, 4, 4)
    alone = jax.jit(model.apply)(variables, pictures[1:2])
    np.testing.assert_allclose(verdicts[1:2], alone, rtol=1e-4, atol=1e-4)
    assert np.std(verdicts) > 0
