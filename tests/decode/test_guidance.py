import jax.numpy as jnp
import numpy as np

from cm3jax.decode.guidance import guide, streams

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)


def test_the_papers_formula():
    conditional, unconditional = LOGITS
    expected = unconditional + 3.0 * (conditional - unconditional)
    np.testing.assert_allclose(guide(LOGITS, jnp.float32(3)), expected, atol=1e-5)
    swapped = guide(LOGITS[::-1], jnp.float32(3))
    assert np.abs(swapped - expected).max() > 0.1


def test_scale_one_is_the_conditional_stream_and_needs_no_other():
    assert streams(1.0) == 1
    assert streams(1.5) == streams(0.0) == 2
    np.testing.assert_array_equal(guide(LOGITS, jnp.float32(1)), LOGITS[0])
    np.testing.assert_array_equal(guide(LOGITS[:1], jnp.float32(3)), LOGITS[0])
