import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.decode import sampling

noise = jax.jit(sampling.noise, static_argnums=2)


def logits(rows, size, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) * 2


def keys(prompts, samples, seed=7):
    prompts, samples = np.asarray(prompts), np.asarray(samples)
    return jnp.asarray(sampling.dice(seed, prompts, samples, (1.0, 1.0)).keys)


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
        fixed = sampling.dice(3, zeros, samples, (value, value)).temperatures
        np.testing.assert_array_equal(fixed, np.full(500, value, np.float32))
    drawn = sampling.dice(3, zeros, samples, (0.5, 1.5)).temperatures
    assert drawn.min() >= 0.5
    assert drawn.max() <= 1.5
    assert drawn.mean() == pytest.approx(1.0, abs=0.05)
    again = sampling.dice(3, zeros, samples[::-1], (0.5, 1.5)).temperatures
    np.testing.assert_array_equal(drawn, again[::-1])


def test_a_nucleus_of_nearly_nothing_keeps_the_likeliest():
    logits = jnp.asarray([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    for p in (1e-46, 1e-30, 1e-9):  # the first is 0 in float32
        kept = sampling.TopP(jnp.float32(p))(logits)
        assert np.isfinite(kept).tolist() == [[False, True, False], [True, True, False]]
