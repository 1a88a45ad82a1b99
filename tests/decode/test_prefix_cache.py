"""Prompts that begin like earlier ones: what is read of them, and that nothing else changes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.config import DecodeConfig, DecoderConfig, VocabConfig
from cm3jax.decode import prefix_cache
from cm3jax.decode.grammar import Codes
from cm3jax.decode.loop import decode, decode_each
from cm3jax.decode.params import as_read
from cm3jax.decode.prefix_cache import Known, PrefixCache
from cm3jax.decode.request import Guide, Request
from cm3jax.decode.throughput import Meter
from cm3jax.model.cache import KeyValues
from cm3jax.model.decoder import Decoder
from cm3jax.sequence.vocab import Vocab

VOCAB = Vocab(VocabConfig(specials=16, image_codes=20, text_pieces=24, sentinels=4, grid=3))
CONFIG = DecoderConfig(
    layers=2,
    width=32,
    heads=4,
    head_width=8,
    ffn=64,
    context=96,
    dtype="float32",
    init_std=0.3,
    token_shift=True,  # needs an id of the cache, too
)
PICTURE = (Codes((None,) * VOCAB.image_tokens),)
BLIND = np.asarray([VOCAB.eos, VOCAB.break_], np.int32)
DRAWN = DecodeConfig(temperature=2.0, batch=8)


@pytest.fixture(scope="module", params=["", "int8"])
def model(request):
    return Decoder(dataclasses.replace(CONFIG, cache=request.param), VOCAB.size)


@pytest.fixture(scope="module")
def read(model):
    return as_read(testing.decoder_variables(model), CONFIG.dtype)


def words(seed, count):
    rng = np.random.default_rng(seed)
    return rng.integers(VOCAB.first_text, VOCAB.size, count, dtype=np.int32)


def asking(documents, question, prompt_id=0):
    """A guided request of an image, after documents; questions differ from the first id on."""
    first = np.asarray([VOCAB.first_text + prompt_id], np.int32)
    prefix = np.concatenate([BLIND[:1], documents, first, question, BLIND[1:]])
    return Request(prefix, (Guide(BLIND, 2.0),), PICTURE, prompt_id)


def run(model, read, requests, prefixes, samples=2):
    """Samples by request, and what was counted; only runs that compile nothing count tokens."""
    meter, found = Meter(), {}
    call = (model, read, VOCAB, requests, DRAWN, samples, 3, meter, None, prefixes)
    for finished in decode_each(*call):
        for done in finished:
            found[done.request] = done.samples
    return [found[place] for place in range(len(requests))], meter


def test_the_same_prompt_is_not_read_again(model, read):
    requests = [asking(words(1, 30), words(2 + i, 4), i) for i in range(2)]
    prefixes = PrefixCache(1 << 24)
    first, meter = run(model, read, requests, prefixes)
    assert meter.report(1)["prefix_hit_rate"] == 0
    again, meter = run(model, read, requests, prefixes)
    assert meter.report(1)["prefix_hit_rate"] == 1
    assert meter.prefill_tokens == 0
    plain = decode(model, read, VOCAB, requests, DRAWN, 2, 3)
    for one, other, without in zip(first, again, plain, strict=True):
        for a, b, c in zip(one, other, without, strict=True):
            assert a.ids.tolist() == b.ids.tolist() == c.ids.tolist()
            assert a.logprob == b.logprob == c.logprob


def test_after_the_same_documents_only_the_question_is_read(model, read):
    documents = words(1, 40)
    asked = [asking(documents, words(10 + i, 4), i) for i in range(3)]
    prefixes = PrefixCache(1 << 24)
    run(model, read, asked[:1], prefixes)
    _, meter = run(model, read, asked[1:2], prefixes)
    known, total = 41 + 1, 46 + 1  # of both streams, without the last ids of each
    assert (meter.prefix_found, meter.prefix_tokens) == (known, total)
    programs = prefix_cache.programs()
    third, meter = run(model, read, asked[2:], prefixes)
    assert prefix_cache.programs() == programs, "a program for each prompt"
    assert meter.prefill_tokens == total - known
    (plain,) = decode(model, read, VOCAB, asked[2:], DRAWN, 2, 3)
    for a, b in zip(third[0], plain, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        # Keys of int8 are read back where a prompt that is read whole has them as they were.
        near = 1e-4 if not model.config.cache else 0.3
        assert a.logprob == pytest.approx(b.logprob, abs=near)


def test_a_list_whose_prompts_share_documents_reads_them_once(model, read):
    documents = words(1, 40)
    asked = [asking(documents, words(20 + i, 4), i) for i in range(12)]
    prefixes = PrefixCache(1 << 24)
    _, meter = run(model, read, asked, prefixes, samples=1)
    # Four slots: eight prompts come when the first four were read.
    assert meter.report(1)["prefix_hit_rate"] == pytest.approx(8 * 42 / (12 * 47))


def known(ids, size=10):
    layer = KeyValues(*(jnp.zeros((1, 1, size, 8)) for _ in range(2)))
    return Known(np.asarray(ids, np.int32), (layer,), len(ids))


def test_what_was_used_longest_ago_goes_first():
    each = 2 * 10 * 8 * 4
    cache = PrefixCache(2 * each)
    first, second, third = ([place] * 3 for place in range(3))
    cache.keep(known(first))
    cache.keep(known(second))
    assert cache.find(np.asarray(first, np.int32), False) is not None
    cache.keep(known(third))
    assert cache.bytes == 2 * each
    there = [cache.find(np.asarray(ids, np.int32), False) for ids in (first, second, third)]
    assert [one is not None for one in there] == [True, False, True]
    cache.keep(known([9] * 3, size=30))  # more than the limit by itself: nothing goes for it
    assert (len(cache), cache.bytes) == (2, 2 * each)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    assert cache.find(np.asarray(first, np.int32), False) is None


def test_a_beginning_helps_if_it_is_half_of_a_prompt():
    cache = PrefixCache(1 << 20)
    cache.keep(known(range(20)))
    longer = np.asarray([*range(18), *[99] * 18], np.int32)
    assert cache.find(longer, beginnings=True).length == 18
    assert cache.find(longer, beginnings=False) is None
    assert cache.find(np.append(longer, [99, 99]).astype(np.int32), beginnings=True) is None
    assert cache.find(np.arange(17, dtype=np.int32), beginnings=True).length == 17
    assert cache.find(np.arange(9, dtype=np.int32), beginnings=True) is None  # less than a chunk
