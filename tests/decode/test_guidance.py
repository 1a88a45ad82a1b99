import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.decode.guidance import ContrastiveK, guide

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 7)) * 2, jnp.float32)


def scales(*values):
    return jnp.tile(jnp.asarray(values, jnp.float32)[:, None], (1, 4))


def test_the_papers_formula():
    conditional, unconditional = LOGITS[:2]
    expected = unconditional + 3.0 * (conditional - unconditional)
    np.testing.assert_allclose(guide(LOGITS[:2], scales(3)), expected, atol=1e-5)
    swapped = guide(LOGITS[1::-1], scales(3))
    assert np.abs(swapped - expected).max() > 0.1


def test_editing_is_guided_by_text_and_by_picture():
    full, image, nothing = LOGITS
    expected = nothing + 1.5 * (image - nothing) + 7.5 * (full - image)
    np.testing.assert_allclose(guide(LOGITS, scales(7.5, 1.5)), expected, atol=1e-4)


def test_rows_have_scales_of_their_own_and_scale_one_is_the_conditional_stream():
    mixed = guide(LOGITS[:2], jnp.asarray([[1.0, 3.0, 0.0, 2.0]]))
    np.testing.assert_array_equal(mixed[0], LOGITS[0, 0])
    np.testing.assert_allclose(mixed[2], LOGITS[1, 2], atol=1e-6)
    np.testing.assert_allclose(mixed[3], guide(LOGITS[:2], scales(2))[3])
    np.testing.assert_array_equal(guide(LOGITS, scales(1, 1)), LOGITS[0])
    np.testing.assert_array_equal(guide(LOGITS[:1], scales()), LOGITS[0])


def literal(conditional, unconditional, k, alpha, temperature):
    """CD-K's scores of one row, formula by formula."""

    def log_p(row):
        weights = [np.exp(float(x)) for x in row]
        return [np.log(w / sum(weights)) if w else -np.inf for w in weights]

    p_cond, p_uncond = log_p(conditional), log_p(np.asarray(unconditional) / temperature)
    permitted = sorted((np.exp(p) for p in p_cond if p > -np.inf), reverse=True)
    threshold = alpha * permitted[min(k, len(permitted)) - 1]
    return [
        c - u if c > -np.inf and np.exp(c) >= threshold else -np.inf
        for c, u in zip(p_cond, p_uncond, strict=True)
    ]


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 0.5), (0.1, 1.0), (1.0, 2.0)])
def test_cd_k_equals_a_literal_one(k, alpha, temperature):
    conditional, unconditional = np.array(LOGITS[0]), np.array(LOGITS[1])
    conditional[1, 2:] = -np.inf  # fewer permitted than k
    scores = ContrastiveK(jnp.int32(k), jnp.float32(alpha), jnp.float32(temperature))(
        jnp.asarray(conditional), jnp.asarray(unconditional)
    )
    for row in range(4):
        expected = literal(conditional[row], unconditional[row], k, alpha, temperature)
        np.testing.assert_allclose(scores[row], expected, atol=1e-4)
        assert np.isfinite(scores[row]).sum() >= min(k, np.isfinite(conditional[row]).sum())


def test_cd_k_with_k_one_is_contrastive_decoding():
    conditional, unconditional = LOGITS[:2]
    scores = ContrastiveK(jnp.int32(1), jnp.float32(0.3), jnp.float32(1.0))(
        conditional, unconditional
    )
    p = np.exp(conditional) / np.exp(conditional).sum(-1, keepdims=True)
    q = np.exp(unconditional) / np.exp(unconditional).sum(-1, keepdims=True)
    classic = np.where(p >= 0.3 * p.max(-1, keepdims=True), np.log(p / q), -np.inf)
    np.testing.assert_allclose(scores, classic, atol=1e-5)
