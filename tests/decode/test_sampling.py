import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import DecodeConfig
from cm3jax.decode import sampling
from cm3jax.decode.sampling import ContrastiveK, Method, contrasted, guide

ROWS, SIZE = 4, 12
LOGITS = np.random.default_rng(1).normal(size=(2, ROWS, SIZE)).astype(np.float32) * 2
ALLOWED = np.random.default_rng(2).random((ROWS, SIZE)) < 0.8
TEMPERATURES = np.asarray([0.5, 1.0, 2.0, 0.0], np.float32)
STREAMS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 7)) * 2, jnp.float32)

noise = jax.jit(sampling.noise, static_argnums=2)


def logits(rows, size, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) * 2


def keys(prompts, samples, seed=7):
    prompts, samples = np.asarray(prompts), np.asarray(samples)
    return jnp.asarray(sampling.sample_keys(seed, prompts, samples, (1.0, 1.0)).keys)


def literal_nucleus(row, top_p):
    """Ids of the smallest set of likeliest ids with probability at least `top_p`."""
    shifted = np.exp(row.astype(np.float64) - row.max())
    probability = shifted / shifted.sum()
    kept, mass = set(), 0.0
    for id_ in sorted(range(len(row)), key=lambda i: -probability[i]):
        if mass >= top_p:
            break
        kept.add(id_)
        mass += probability[id_]
    return kept


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.8, 0.999])
def test_the_nucleus_equals_a_literal_one(top_p):
    rows = logits(20, 37)
    rows[3, 5:] = -np.inf
    actual = np.asarray(sampling.TopP(jnp.float32(top_p))(jnp.asarray(rows)))
    for row, kept in zip(rows, np.isfinite(actual), strict=True):
        assert set(np.flatnonzero(kept)) == literal_nucleus(row, top_p)
    np.testing.assert_array_equal(actual[np.isfinite(actual)], rows[np.isfinite(actual)])


@pytest.mark.parametrize("k", [1, 4, 37, 99])
def test_top_k_equals_a_literal_one(k):
    rows = logits(20, 37)
    rows[3, 5:] = -np.inf
    actual = np.asarray(sampling.TopK(jnp.int32(k))(jnp.asarray(rows)))
    for row, kept in zip(rows, actual, strict=True):
        best = sorted((i for i in range(37) if np.isfinite(row[i])), key=lambda i: -row[i])[:k]
        assert set(np.flatnonzero(np.isfinite(kept))) == set(best)
    tied = jnp.asarray([[1.0, 2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(sampling.TopK(jnp.int32(1))(tied), [[-np.inf, 2.0, 2.0, -np.inf]])


def test_tokens_are_drawn_from_the_softmax():
    row, draws = logits(1, 6)[0], 20_000
    zeros = jnp.zeros(draws, jnp.int32)
    tokens = sampling.sample_token(
        jnp.tile(row, (draws, 1)),
        noise(keys(np.zeros(draws, int), np.arange(draws)), zeros, 6),
        jnp.zeros(draws, bool),
    )
    frequencies = np.bincount(tokens, minlength=6) / draws
    np.testing.assert_allclose(frequencies, np.exp(row) / np.exp(row).sum(), atol=0.015)


def test_greedy_rows_take_the_likeliest_whatever_the_noise():
    rows = jnp.asarray(logits(8, 11))
    loud = 100 * noise(keys(range(8), [0] * 8), jnp.zeros(8, jnp.int32), 11)
    tokens = np.asarray(sampling.sample_token(rows, loud, jnp.arange(8) < 4))
    np.testing.assert_array_equal(tokens[:4], rows[:4].argmax(-1))
    assert (tokens[4:] != rows[4:].argmax(-1)).any()
    alone = sampling.sample_token(rows, None, jnp.ones(8, bool))
    np.testing.assert_array_equal(alone, rows.argmax(-1))


def test_noise_is_a_function_of_seed_prompt_sample_and_tokens_emitted():
    prompts, samples, emitted = [3, 3, 9, 0], [0, 1, 0, 3], jnp.asarray([5, 5, 5, 6])
    together = np.asarray(noise(keys(prompts, samples), emitted, 13))
    for row in range(4):
        mine = keys(prompts[row : row + 1], samples[row : row + 1])
        alone = noise(mine, emitted[row : row + 1], 13)[0]
        np.testing.assert_array_equal(alone, together[row])
        later = noise(mine, emitted[row : row + 1] + 1, 13)[0]
        assert np.abs(later - alone).min() > 0
    assert len(np.unique(together)) == together.size
    other = noise(keys(prompts, samples, seed=8), emitted, 13)
    assert np.abs(other - together).min() > 0


def test_a_token_is_the_first_of_the_largest():
    none = [-np.inf] * 4
    scores = jnp.asarray([[0.0, 3.0, 3.0, 1.0], none, [*none[:2], -9.0, -np.inf]])
    noise = jnp.asarray([[5.0, 1.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0], [9.0, 9.0, -9.0, 9.0]])
    draw = jax.jit(sampling.sample_token)
    assert draw(scores, noise, jnp.zeros(3, bool)).tolist() == [0, 0, 2]
    assert draw(scores, noise, jnp.ones(3, bool)).tolist() == [1, 0, 2]
    assert draw(scores, None, jnp.ones(3, bool)).tolist() == [1, 0, 2]


def test_noise_is_gumbel_and_finite_for_every_word():
    low, high = np.asarray(sampling.gumbel(jnp.asarray([0, 2**32 - 1], jnp.uint32)))
    assert low == pytest.approx(-np.log(24 * np.log(2)), abs=1e-3)
    assert high == pytest.approx(24 * np.log(2), abs=1e-3)
    drawn = np.asarray(noise(keys([0], [0]), jnp.zeros(1, jnp.int32), 100_000))
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert drawn.std() == pytest.approx(np.pi / 6**0.5, abs=0.02)


def test_temperatures_are_fixed_or_drawn_once_per_sample():
    zeros, samples = np.zeros(500, int), np.arange(500)
    for value in (0.0, 0.7):
        fixed = sampling.sample_keys(3, zeros, samples, (value, value)).temperatures
        np.testing.assert_array_equal(fixed, np.full(500, value, np.float32))
    drawn = sampling.sample_keys(3, zeros, samples, (0.5, 1.5)).temperatures
    assert drawn.min() >= 0.5
    assert drawn.max() <= 1.5
    assert drawn.mean() == pytest.approx(1.0, abs=0.05)
    again = sampling.sample_keys(3, zeros, samples[::-1], (0.5, 1.5)).temperatures
    np.testing.assert_array_equal(drawn, again[::-1])


def test_a_nucleus_of_nearly_nothing_keeps_the_likeliest():
    logits = jnp.asarray([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    for p in (1e-46, 1e-30, 1e-9):  # the first is 0 in float32
        kept = sampling.TopP(jnp.float32(p))(logits)
        assert np.isfinite(kept).tolist() == [[False, True, False], [True, True, False]]


def scales(*values):
    return jnp.tile(jnp.asarray(values, jnp.float32)[:, None], (1, 4))


def test_the_papers_formula():
    conditional, unconditional = STREAMS[:2]
    expected = unconditional + 3.0 * (conditional - unconditional)
    np.testing.assert_allclose(guide(STREAMS[:2], scales(3)), expected, atol=1e-5)
    swapped = guide(STREAMS[1::-1], scales(3))
    assert np.abs(swapped - expected).max() > 0.1


def test_editing_is_guided_by_text_and_by_picture():
    full, image, nothing = STREAMS
    expected = nothing + 1.5 * (image - nothing) + 7.5 * (full - image)
    np.testing.assert_allclose(guide(STREAMS, scales(7.5, 1.5)), expected, atol=1e-4)


def test_rows_have_scales_of_their_own_and_scale_one_is_the_conditional_stream():
    mixed = guide(STREAMS[:2], jnp.asarray([[1.0, 3.0, 0.0, 2.0]]))
    np.testing.assert_array_equal(mixed[0], STREAMS[0, 0])
    np.testing.assert_allclose(mixed[2], STREAMS[1, 2], atol=1e-6)
    np.testing.assert_allclose(mixed[3], guide(STREAMS[:2], scales(2))[3])
    np.testing.assert_array_equal(guide(STREAMS, scales(1, 1)), STREAMS[0])
    np.testing.assert_array_equal(guide(STREAMS[:1], scales()), STREAMS[0])


def literal_contrast(conditional, unconditional, k, alpha, temperature):
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
    conditional, unconditional = np.array(STREAMS[0]), np.array(STREAMS[1])
    conditional[1, 2:] = -np.inf  # fewer permitted than k
    scores = ContrastiveK(jnp.int32(k), jnp.float32(alpha), jnp.float32(temperature))(
        jnp.asarray(conditional), jnp.asarray(unconditional)
    )
    for row in range(4):
        expected = literal_contrast(conditional[row], unconditional[row], k, alpha, temperature)
        np.testing.assert_allclose(scores[row], expected, atol=1e-4)
        assert np.isfinite(scores[row]).sum() >= min(k, np.isfinite(conditional[row]).sum())


def test_cd_k_with_k_one_is_contrastive_decoding():
    conditional, unconditional = STREAMS[:2]
    scores = ContrastiveK(jnp.int32(1), jnp.float32(0.3), jnp.float32(1.0))(
        conditional, unconditional
    )
    p = np.exp(conditional) / np.exp(conditional).sum(-1, keepdims=True)
    q = np.exp(unconditional) / np.exp(unconditional).sum(-1, keepdims=True)
    classic = np.where(p >= 0.3 * p.max(-1, keepdims=True), np.log(p / q), -np.inf)
    np.testing.assert_allclose(scores, classic, atol=1e-5)


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


def test_the_method_of_rows_has_the_numbers_of_each_row_and_makes_each_once(monkeypatch):
    made, of = [], Method.of
    monkeypatch.setattr(Method, "of", lambda config: made.append(config) or of(config))
    one, two = DecodeConfig(top_k=3, top_p=0.5), DecodeConfig(top_k=7, top_p=0.9)
    method = Method.of_rows([one, two, one, one])
    assert made == [one, two]
    top_k, top_p = method.filters
    assert (top_k.k.dtype, top_p.p.dtype) == (jnp.int32, jnp.float32)
    assert top_k.k.tolist() == [[3], [7], [3], [3]]
    np.testing.assert_allclose(top_p.p, [[0.5], [0.9], [0.5], [0.5]], rtol=1e-6)


def literal_method(row, top_k, top_p, scale=3.0):
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
        np.testing.assert_allclose(found[row], literal_method(row, top_k, top_p), atol=1e-4)


def test_half_a_batch_by_top_p_and_half_by_cd_k():
    config = DecodeConfig(top_p=0.6, contrast="half", contrast_k=2, contrast_alpha=0.4)
    rows = contrasted(config, np.arange(ROWS))
    assert rows.tolist() == [False, True, False, True]
    found = scores(config, rows)
    for row in (0, 2):
        np.testing.assert_allclose(found[row], literal_method(row, 0, 0.6), atol=1e-4)
    for row in (1, 3):
        permitted = np.where(ALLOWED[row], LOGITS[0, row], -np.inf) / (TEMPERATURES[row] or 1)
        expected = literal_contrast(permitted, LOGITS[1, row], 2, 0.4, 0.5)
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_cd_k_for_all_or_none():
    assert contrasted(DecodeConfig(contrast="all"), np.arange(3)).all()
    assert not contrasted(DecodeConfig(), np.arange(3)).any()
