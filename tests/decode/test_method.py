import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import DecodeConfig
from cm3jax.decode.method import Method, contrasted
from tests.decode.test_guidance import literal as literal_contrast
from tests.decode.test_sampling import literal_nucleus

ROWS, SIZE = 4, 12
LOGITS = np.random.default_rng(1).normal(size=(2, ROWS, SIZE)).astype(np.float32) * 2
ALLOWED = np.random.default_rng(2).random((ROWS, SIZE)) < 0.8
TEMPERATURES = np.asarray([0.5, 1.0, 2.0, 0.0], np.float32)


def scores(config, rows=(False,) * ROWS, scale=3.0):
    return np.asarray(
        Method.of(config).scores(
            jnp.asarray(LOGITS),
            jnp.asarray(ALLOWED),
            jnp.full((1, ROWS), scale),
            jnp.asarray(TEMPERATURES),
            jnp.asarray(rows),
        )
    )


def literal(row, top_k, top_p, scale=3.0):
    """Guidance, temperature, top-k, top-p of one row, in this order, as loops."""
    temperature = TEMPERATURES[row] or 1.0
    guided = LOGITS[1, row] + scale * (LOGITS[0, row] - LOGITS[1, row])
    out = [guided[i] / temperature if ALLOWED[row, i] else -np.inf for i in range(SIZE)]
    if top_k:
        kept = sorted(range(SIZE), key=lambda i: -out[i])[:top_k]
        out = [value if i in kept else -np.inf for i, value in enumerate(out)]
    if top_p < 1:
        kept = literal_nucleus(np.asarray(out), top_p)
        out = [value if i in kept else -np.inf for i, value in enumerate(out)]
    return out


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.6)])
def test_methods_compose_in_their_order(top_k, top_p):
    found = scores(DecodeConfig(top_k=top_k, top_p=top_p))
    for row in range(ROWS):
        np.testing.assert_allclose(found[row], literal(row, top_k, top_p), atol=1e-4)


def test_half_a_batch_by_top_p_and_half_by_cd_k():
    config = DecodeConfig(top_p=0.6, contrast="half", contrast_k=2, contrast_alpha=0.4)
    rows = contrasted(config, np.arange(ROWS))
    assert rows.tolist() == [False, True, False, True]
    found = scores(config, rows)
    for row in (0, 2):
        np.testing.assert_allclose(found[row], literal(row, 0, 0.6), atol=1e-4)
    for row in (1, 3):
        permitted = np.where(ALLOWED[row], LOGITS[0, row], -np.inf) / (TEMPERATURES[row] or 1)
        expected = literal_contrast(permitted, LOGITS[1, row], 2, 0.4, 0.5)
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_cd_k_for_all_or_none():
    assert contrasted(DecodeConfig(contrast="all"), np.arange(3)).all()
    assert not contrasted(DecodeConfig(), np.arange(3)).any()
