import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.config import DecodeConfig, DecoderConfig, VocabConfig
from cm3jax.decode import loop
from cm3jax.decode.grammar import Codes, Words
from cm3jax.decode.loop import Request, decode
from cm3jax.errors import UserError
from cm3jax.model.decoder import Decoder
from cm3jax.vocab import Vocab

VOCAB = Vocab(VocabConfig(specials=16, image_codes=20, text_pieces=24, sentinels=4, grid=3))
CONFIG = DecoderConfig(
    layers=2, width=32, heads=4, head_width=8, ffn=64, context=90, dtype="float32", init_std=0.3
)
MODEL = Decoder(CONFIG, VOCAB.size)
GREEDY = DecodeConfig(temperature=0.0)
PICTURE = (Codes((None,) * VOCAB.image_tokens),)


@pytest.fixture(scope="module")
def variables():
    return testing.decoder_variables(MODEL)


def text_request(prompt_id, length, program=PICTURE):
    pieces = np.random.default_rng(prompt_id).integers(VOCAB.first_text, VOCAB.size, length)
    prefix = np.asarray([VOCAB.eos, *pieces, VOCAB.break_], np.int32)
    unconditional = np.asarray([VOCAB.eos, VOCAB.sentinel(0), VOCAB.break_], np.int32)
    return Request(prefix, unconditional, program, prompt_id)


@jax.jit
def logits(variables, row):
    hidden = MODEL.apply(variables, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row))
    return MODEL.apply(variables, hidden, method="logits")[0]


def forward(variables, ids):
    """Logits after the last id, by the training forward on one row; what follows is not seen."""
    row = np.zeros((1, CONFIG.context), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(logits(variables, row)[len(ids) - 1])


def literal(variables, request, scale=1.0):
    """Greedy decoding as a formula says it: a full forward per token, no cache, one row."""
    emitted, logprob = [], 0.0
    for known in request.program[0].ids:
        conditional = forward(variables, [*request.prefix, *emitted])
        unconditional = forward(variables, [*request.unconditional, *emitted])
        guided = unconditional + scale * (conditional - unconditional)
        codes = slice(VOCAB.first_image, VOCAB.first_text)
        choice = VOCAB.first_image + int(guided[codes].argmax()) if known is None else known
        if known is None:
            among = conditional[codes].astype(np.float64)
            logprob += among[choice - VOCAB.first_image] - np.log(np.exp(among).sum())
        emitted.append(choice)
    return emitted, logprob


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cached_ragged_batches_equal_one_full_forward_per_token(variables, scale):
    known = Codes((None, VOCAB.first_image + 7, *(None,) * 7))
    requests = [text_request(0, 3), text_request(1, 25), text_request(2, 14, (known,))]
    config = dataclasses.replace(GREEDY, guidance_scale=scale)
    for request, samples in zip(
        requests, decode(MODEL, variables, VOCAB, requests, config, samples=2), strict=True
    ):
        ids, logprob = literal(variables, request, scale)
        for sample in samples:
            assert sample.ids.tolist() == ids
            assert sample.logprob == pytest.approx(logprob, abs=1e-4)
            assert sample.temperature == 0


def test_the_longest_prompt_that_fits(variables):
    request = text_request(3, CONFIG.context - VOCAB.image_tokens - 2)
    ((sample,),) = decode(MODEL, variables, VOCAB, [request], GREEDY)
    assert sample.ids.tolist() == literal(variables, request)[0]


def test_guidance_changes_the_output_and_scale_one_runs_no_second_stream(variables):
    requests = [text_request(i, 20 + i) for i in range(4)]
    guided = dataclasses.replace(GREEDY, guidance_scale=4.0)

    def ids(requests, config):
        return [s[0].ids.tolist() for s in decode(MODEL, variables, VOCAB, requests, config, 2)]

    swapped = [Request(r.unconditional, r.prefix, r.program, r.prompt_id) for r in requests]
    assert ids(requests, guided) != ids(swapped, guided)
    alone = [dataclasses.replace(r, unconditional=None) for r in requests]
    assert ids(requests, GREEDY) == ids(alone, guided)
    (batch,) = loop._plan(requests, 2, GREEDY)
    assert batch.ways == 1
    one = loop._run(batch, MODEL, variables, VOCAB, GREEDY, 0)
    two = dataclasses.replace(batch, ways=2)
    forced = loop._run(two, MODEL, variables, VOCAB, GREEDY, 0)
    np.testing.assert_array_equal(one.ids, forced.ids)
    np.testing.assert_allclose(one.logprobs, forced.logprobs, atol=1e-5)


def test_draws_do_not_depend_on_the_batch(variables):
    requests = [text_request(i, 18 + 4 * i) for i in range(4)]
    config = DecodeConfig(temperature_range=(2.0, 4.0), guidance_scale=2.0)
    together = decode(MODEL, variables, VOCAB, requests, config, samples=2, seed=5)
    narrow = dataclasses.replace(config, batch=4)
    again = decode(MODEL, variables, VOCAB, requests[::-1], narrow, samples=2, seed=5)[::-1]
    pairs = zip(itertools.chain(*together), itertools.chain(*again), strict=True)
    for first, second in pairs:
        assert first.ids.tolist() == second.ids.tolist()
        assert first.temperature == second.temperature
        assert first.logprob == pytest.approx(second.logprob, abs=1e-4)
    drawn = {tuple(sample.ids) for samples in together for sample in samples}
    assert len(drawn) == 8
    other = decode(MODEL, variables, VOCAB, requests, config, samples=2, seed=6)
    assert not drawn & {tuple(sample.ids) for samples in other for sample in samples}


def test_more_samples_than_rows_are_made_in_turns(variables):
    requests = [text_request(i, 20) for i in range(2)]
    config = DecodeConfig(temperature=2.0, guidance_scale=2.0, batch=4)
    few, many = (
        decode(MODEL, variables, VOCAB, requests, config, samples=count) for count in (2, 5)
    )
    for some, more in zip(few, many, strict=True):
        assert len(more) == 5
        assert [s.ids.tolist() for s in some] == [s.ids.tolist() for s in more[:2]]


def test_texts_end_by_themselves_or_at_their_limit_over_several_chunks(variables):
    requests = [text_request(i, 5, (Words(limit),)) for i, limit in enumerate([40, 33, 48, 35])]
    config = DecodeConfig(temperature=1.5, top_p=0.99)
    lengths = []
    for request, (sample,) in zip(
        requests, decode(MODEL, variables, VOCAB, requests, config, seed=2), strict=True
    ):
        assert sample.ids[-1] == VOCAB.eoss
        assert (sample.ids[:-1] >= VOCAB.first_text).all()
        assert 2 <= len(sample.ids) <= request.program[0].limit
        lengths.append(len(sample.ids))
    assert max(lengths) > loop.CHUNK, "no text crossed a chunk; choose another seed"
    assert len(set(lengths)) > 1


def test_prompts_of_one_bucket_share_one_program(variables):
    config = dataclasses.replace(GREEDY, batch=8)

    def run(*lengths):
        requests = [text_request(i, length) for i, length in enumerate(lengths)]
        decode(MODEL, variables, VOCAB, requests, config, samples=2)

    run(18, 20, 25, 27)
    programs = loop._prefill._cache_size(), loop._chunk._cache_size()
    run(17, 30, 19, 22, 23, 24, 25, 26)
    run(29, 28, 27, 26, 25, 24, 23)
    assert (loop._prefill._cache_size(), loop._chunk._cache_size()) == programs


def test_buckets_waste_at_most_a_third_and_hold_whole_chunks():
    for length in range(1, 200):
        size = loop.bucket(length)
        assert size >= length
        assert size % loop.CHUNK == 0
        assert size - length < max(loop.CHUNK, size / 3 + 1)
        assert loop.bucket(size) == size


def test_a_prompt_too_long_for_the_context_says_lengths(variables):
    request = text_request(4, CONFIG.context - 9)
    with pytest.raises(UserError, match=r"prompt 4 is 83 tokens long and asks for 9 more.* is 90"):
        decode(MODEL, variables, VOCAB, [request], GREEDY)
