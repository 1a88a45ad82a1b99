import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from cm3jax.sequence import prng
from cm3jax.sequence.prng import PrngStream

KNOWN = [  # Random123's kat_vectors for threefry2x32, 20 rounds: counter, key, answer
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_threefry_gives_the_published_words(xp, counter, key, answer):
    words = [xp.asarray([word], xp.uint32) for word in (*key, *counter)]
    result = prng.threefry(xp, words[:2], words[2:])
    assert [int(word[0]) for word in result] == list(answer)


def test_threefry_agrees_with_jax():
    words = np.arange(1, 2001, dtype=np.uint32) * np.uint32(2654435761)
    key = words[:2]
    ours = prng.threefry(np, (key[:1], key[1:]), (words[:1000], words[1000:]))
    np.testing.assert_array_equal(np.concatenate(ours), threefry_2x32(key, words))


def test_numpy_and_jax_give_the_same_words_under_jit():
    records = np.arange(1000).reshape(10, 100)
    on_host = prng.bits(np, 7, 3, records, PrngStream.MASKS, 5, 2)
    under_jit = jax.jit(lambda epoch, r: prng.bits(jnp, 7, epoch, r, PrngStream.MASKS, 5, 2))
    assert on_host.shape == (10, 100, 5)
    np.testing.assert_array_equal(on_host, under_jit(3, records))


def test_words_are_a_function_of_each_of_their_names():
    base = prng.bits(np, 1, 2, 3, PrngStream.MASKS, 4)
    others = [
        prng.bits(np, 9, 2, 3, PrngStream.MASKS, 4),
        prng.bits(np, 1, 9, 3, PrngStream.MASKS, 4),
        prng.bits(np, 1, 2, 9, PrngStream.MASKS, 4),
        prng.bits(np, 1, 2, 3, PrngStream.VIEW, 4),
    ]
    assert all((base != other).all() for other in others)
    np.testing.assert_array_equal(base[2:], prng.bits(np, 1, 2, 3, PrngStream.MASKS, 2, 2))
    np.testing.assert_array_equal(base, prng.bits(np, 1 - 2**32, 2, 3, PrngStream.MASKS, 4))


@pytest.mark.parametrize("xp", [np, jnp])
def test_below_is_the_high_word_of_the_product(xp):
    words = prng.bits(np, 0, 0, np.arange(4000), PrngStream.DATA, 1)[:, 0]
    limits = prng.bits(np, 1, 0, np.arange(4000), PrngStream.DATA, 1)[:, 0]
    limits[:1000] %= 100
    exact = words.astype(np.uint64) * limits.astype(np.uint64) >> np.uint64(32)
    np.testing.assert_array_equal(prng.below(xp, xp.asarray(words), xp.asarray(limits)), exact)


def test_below_is_uniform():
    words = prng.bits(np, 0, 0, np.arange(60_000), PrngStream.DATA, 1)[:, 0]
    counts = np.bincount(prng.below(np, words, 6), minlength=6)
    assert abs(counts - 10_000).max() < 400  # about 4 standard deviations


def test_chance_has_its_probability_and_exact_ends():
    words = prng.bits(np, 0, 0, np.arange(50_000), PrngStream.DATA, 1)[:, 0]
    words = np.append(words, np.asarray([0, 2**32 - 1], np.uint32))
    assert not prng.chance(np, words, 0.0).any()
    assert prng.chance(np, words, 1.0).all()
    assert abs(prng.chance(np, words, 0.2).mean() - 0.2) < 0.01


def test_permutation_holds_every_record_once_and_differs_by_epoch():
    first, second = prng.permutation(5, 0, 1000), prng.permutation(5, 1, 1000)
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    np.testing.assert_array_equal(first, prng.permutation(5, 0, 1000))
    assert (first != second).mean() > 0.95
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15


def test_draws_for_no_records_are_empty():
    none = np.zeros(0, np.int64)
    assert prng.bits(np, 7, 3, none, PrngStream.MASKS, 5).shape == (0, 5)
    assert prng.permutation(7, 3, 0).shape == (0,)
