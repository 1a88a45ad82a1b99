import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.model import embeddings
from cm3jax.model.decoder import Decoder
from cm3jax.model.encoder_decoder import EncoderDecoder


def models(**changes):
    config = dataclasses.replace(testing.experiment().model, **changes)
    return Decoder(config, 20), EncoderDecoder(config, 1, 20, text_tokens=6, image_tokens=4)


def parameters(model):
    row = jnp.zeros((1, 4), jnp.int32)
    rows = (row, row > -1, row) if isinstance(model, EncoderDecoder) else (row, row, row)
    return testing.random_variables(model.init, *rows)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_products_with_the_rows_of_one_table(tied):
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 32)), jnp.float32)
    for model in models(tied=tied):
        variables = parameters(model)
        assert ("head" in variables["params"]) == (not tied)
        table = np.asarray(variables["params"]["embedding" if tied else "head"], float)
        states = np.asarray(hidden, float)
        expected = [[[state @ row for row in table] for state in rows] for rows in states]
        logits = jax.jit(functools.partial(model.apply, method="logits"))
        found = logits(variables, hidden)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        alone = logits(variables, hidden[:, 1])
        np.testing.assert_allclose(alone, found[:, 1], rtol=1e-5, atol=1e-5)


def test_logits_are_float32_whatever_the_activations_are():
    hidden = jnp.asarray([[256.0, 1.0], [1.0, 0.0]], jnp.bfloat16)
    found = jax.jit(embeddings.logits)(hidden, jnp.full((5, 2), 1 + 2**-9))
    assert found.dtype == jnp.float32
    # The table is rounded to bfloat16, which has no 257; the sum is not.
    np.testing.assert_array_equal(found, np.repeat([[257.0], [1.0]], 5, axis=1))


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_positions_are_in_a_table_only_if_they_are_learned(positions):
    sizes = ({"position": (96, 32)}, {"position": (4, 32), "text_position": (6, 32)})
    for model, expected in zip(models(positions=positions), sizes, strict=True):
        params = parameters(model)["params"]
        found = {name: params[name].shape for name in params if "position" in name}
        assert found == (expected if positions == "learned" else {})
