"""Random draws that are a function of (seed, epoch, record) and nothing else.

Threefry-2x32 (Salmon et al. 2011; the generator of `jax.random`) in plain uint32 arithmetic, with
the array module (numpy or jax.numpy) as argument: both give the same bits on any machine, mesh,
batch shape or number of processes. Everything derived here stays in integers, because floating
point rounds differently from backend to backend.
"""

import enum
from types import ModuleType

import numpy as np

from cm3jax.shapes import Array, Int, UInt32


class PrngStream(enum.IntEnum):
    """What a draw is for: draws of one record in different streams are independent."""

    SHUFFLE = 0
    """The order of records in an epoch."""
    ROWS = 1
    """The order of packed rows in a block."""
    MASK_COUNT = 2
    """How many masks a sample gets."""
    MASKS = 3
    """Where they are."""
    NO_DOCUMENTS = 4
    """Whether a sample is shown without its documents."""
    DOCUMENTS = 5
    """Which of the stored neighbours a sample is shown."""
    VIEW = 6
    """Which query view's neighbours they come from."""
    QUERY_DROPOUT = 7
    """Which text tokens a query view lacks."""
    DATA = 8
    """Content of procedural data."""
    AUGMENT = 9
    """Crops and flips."""
    SAMPLES = 10
    """The key and the temperature of each generated sample."""
    TOKENS = 11
    """The noise of each generated token."""
    MIXTURE = 12
    """Which corpus of a mixture a row comes from."""
    NO_CAPTION = 13
    """Whether a pair is shown to the encoder-decoder without its caption."""
    WRONG_DOCUMENTS = 14
    """Whether a sample is shown a document of another record, and of which."""
    DOCUMENT_ORDER = 15
    """The order of a sample's documents."""
    OWN_DOCUMENTS = 16
    """Whether a sample is shown itself."""


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF


def threefry(xp: ModuleType, key, counter):
    """Threefry-2x32 with 20 rounds: two uint32 words from a key pair and a counter pair.

    The four words are uint32 arrays of at least one axis that broadcast to one shape.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ xp.uint32(_PARITY))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << xp.uint32(rotation)) | (x1 >> xp.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + (schedule[(group + 2) % 3] + xp.uint32(group + 1))
    return x0, x1


def _words(xp: ModuleType, value):
    """`value` modulo 2**32 as uint32 with a new last axis (numpy warns on 0-d overflow)."""
    if isinstance(value, int):
        value &= _WORD
    return xp.asarray(value, dtype=xp.uint32)[..., None]


def bits(
    xp: ModuleType, seed, epoch, record, stream: int, count: int, start=0
) -> UInt32[Array | np.ndarray, "*B W"]:
    """Random words `start .. start + count` of every record, uint32 `[*record.shape, count]`.

    `seed`, `epoch` and `record` are integers or integer arrays that broadcast to one shape, taken
    modulo 2**32. A record has 131,072 words in each stream; `start` must be even.
    """
    pair = xp.arange((count + 1) // 2, dtype=xp.uint32) + _words(xp, start) // xp.uint32(2)
    counter = (_words(xp, record), xp.uint32(int(stream) << 16) | pair)
    words = threefry(xp, (_words(xp, seed), _words(xp, epoch)), counter)
    words = xp.stack(xp.broadcast_arrays(*words), axis=-1)
    # Without -1: there may be no records.
    return words.reshape(*words.shape[:-2], words.shape[-2] * words.shape[-1])[..., :count]


def below(xp: ModuleType, word, limit) -> UInt32[Array | np.ndarray, "*B"]:
    """Uniform integers in `0 .. limit - 1` from random words: the high half of `word * limit`.

    The 64-bit product is put together from 16-bit halves, since jax.numpy has no 64-bit integers
    by default. The bias is at most `limit / 2**32`. A limit of 0 gives 0.
    """
    limit = xp.asarray(limit).astype(xp.uint32)
    half, low = xp.uint32(16), xp.uint32(0xFFFF)
    word_high, word_low = word >> half, word & low
    limit_high, limit_low = limit >> half, limit & low
    cross_a, cross_b = word_high * limit_low, word_low * limit_high
    carry = (cross_a & low) + (cross_b & low) + (word_low * limit_low >> half)
    return word_high * limit_high + (cross_a >> half) + (cross_b >> half) + (carry >> half)


def chance(xp: ModuleType, word, probability: float):
    """Which random words are a success of this probability (to 2**-31; 0 and 1 are exact)."""
    return (word >> xp.uint32(1)) < xp.uint32(round(probability * 2**31))


def permutation(
    seed: int, epoch: int, count: int, stream: int = PrngStream.SHUFFLE, first: int = 0
) -> Int[np.ndarray, " M"]:
    """A random order of `0 .. count - 1`, int64: the same for every process (host only).

    Drawn with the words of records `first .. first + count - 1`.
    """
    words = bits(np, seed, epoch, first + np.arange(count), stream, 2).astype(np.uint64)
    return np.argsort(words[:, 0] << np.uint64(32) | words[:, 1], kind="stable")
