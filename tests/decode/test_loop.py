import dataclasses
import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import partition, testing
from cm3jax.config import DecodeConfig, DecoderConfig, MeshConfig, VocabConfig
from cm3jax.decode import plan, steps
from cm3jax.decode.grammar import Codes, Interleaved, Words
from cm3jax.decode.loop import Slots, decode, decode_each
from cm3jax.decode.params import as_read, bytes_per_step
from cm3jax.decode.request import Guide, Request
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.model.cache import start_cache
from cm3jax.model.decoder import Decoder
from cm3jax.model.quantised import FewBits, contracted_by, quantise
from cm3jax.sequence.document import Image, parse
from cm3jax.sequence.vocab import Vocab

VOCAB = Vocab(VocabConfig(specials=16, image_codes=20, text_pieces=24, sentinels=4, grid=3))
CONFIG = DecoderConfig(
    layers=2,
    width=32,
    heads=4,
    head_width=8,
    ffn=64,
    context=90,
    dtype="float32",
    init_std=0.3,
    token_shift=True,  # needs an id of the cache, too
)
MODEL = Decoder(CONFIG, VOCAB.size)
GREEDY = DecodeConfig(temperature=0.0)
PICTURE = (Codes((None,) * VOCAB.image_tokens),)


@pytest.fixture(scope="module")
def variables():
    return testing.decoder_variables(MODEL)


@pytest.fixture(scope="module")
def read(variables):
    return as_read(variables, CONFIG.dtype)


BLIND = np.asarray([VOCAB.eos, VOCAB.sentinel(0), VOCAB.break_], np.int32)


def text_request(prompt_id, length, program=PICTURE, scale=1.0):
    pieces = np.random.default_rng(prompt_id).integers(VOCAB.first_text, VOCAB.size, length)
    prefix = np.asarray([VOCAB.eos, *pieces, VOCAB.break_], np.int32)
    guides = () if scale == 1 else (Guide(BLIND, scale),)
    return Request(prefix, guides, program, prompt_id)


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
        unconditional = forward(variables, [*BLIND, *emitted])
        guided = unconditional + scale * (conditional - unconditional)
        codes = slice(VOCAB.first_image, VOCAB.first_text)
        choice = VOCAB.first_image + int(guided[codes].argmax()) if known is None else known
        if known is None:
            among = conditional[codes].astype(np.float64)
            logprob += among[choice - VOCAB.first_image] - np.log(np.exp(among).sum())
        emitted.append(choice)
    return emitted, logprob


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cached_ragged_batches_equal_one_full_forward_per_token(variables, read, scale):
    known = Codes((None, VOCAB.first_image + 7, *(None,) * 7))
    lengths = ((0, 3, PICTURE), (1, 25, PICTURE), (2, 14, (known,)))
    requests = [text_request(*each, scale) for each in lengths]
    found = decode(MODEL, read, VOCAB, requests, GREEDY, samples=2)
    for request, samples in zip(requests, found, strict=True):
        ids, logprob = literal(variables, request, scale)
        for sample in samples:
            assert sample.ids.tolist() == ids
            assert sample.logprob == pytest.approx(logprob, abs=1e-4)
            assert sample.sampled == request.program[0].ids.count(None)
            assert sample.temperature == 0


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("int8", "int4", "fp8")]
)
def test_matrices_of_few_bits_decode_as_what_they_stand_for(variables, kind, monkeypatch):
    """The same ids and log-probabilities as a full forward per token with the widened matrices."""

    def widen(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        return quantise(leaf, contracted_by(path), kind).widened("float32")

    jax.clear_caches()
    monkeypatch.setattr(partition, "platform", lambda: "gpu")
    read = as_read(variables, CONFIG.dtype, kind)
    assert isinstance(read["params"]["layer_0"]["query"]["kernel"], FewBits)
    wide = jax.tree.map_with_path(widen, variables)
    request = text_request(0, 12, scale=2.0)
    ((sample,),) = decode(MODEL, read, VOCAB, [request], GREEDY)
    ids, logprob = literal(wide, request, 2.0)
    assert sample.ids.tolist() == ids
    assert sample.logprob == pytest.approx(logprob, abs=1e-4)
    jax.clear_caches()  # of what was traced for another platform


@pytest.mark.slow  # models of their own; matrices of int8 are tested above
def test_int8_changes_little_and_reads_fewer_bytes(variables, read):
    """On CPUs rows are of int8, too; and a cache of int8 knows its tokens to a hundredth."""
    # Eight codes are given and one is drawn, so that all see the same ids.
    program = (Codes((*range(VOCAB.first_image, VOCAB.first_image + 8), None)),)
    requests = [text_request(i, 10 + 9 * i, program, scale=2.0) for i in range(3)]
    plain = decode(MODEL, read, VOCAB, requests, GREEDY)
    small = MODEL.clone(config=dataclasses.replace(CONFIG, cache="int8"))
    for model, weights in ((MODEL, "int8"), (small, "")):
        found = as_read(variables, CONFIG.dtype, weights)
        if weights:
            assert bytes_per_step(found) < 0.6 * bytes_per_step(read)
        made = decode(model, found, VOCAB, requests, GREEDY)
        for (one,), (other,) in zip(plain, made, strict=True):
            assert other.logprob != one.logprob
            assert other.logprob == pytest.approx(one.logprob, abs=0.5)
    kept = steps.start(small.config, plan.ProgramShape(2, 2, 1, 16, 32), 32).cache.suffix[0].keys
    assert kept.values.dtype == jnp.int8
    assert kept.scales.shape == (4, CONFIG.heads, 32, 1)


def test_the_longest_prompt_that_fits(variables, read):
    request = text_request(3, CONFIG.context - VOCAB.image_tokens - 2)
    ((sample,),) = decode(MODEL, read, VOCAB, [request], GREEDY)
    assert sample.ids.tolist() == literal(variables, request)[0]


def test_guidance_changes_the_output_and_scale_one_is_no_guidance(read):
    alone = [text_request(i, 20 + i) for i in range(4)]

    def run(requests):
        return [s for (s, _) in decode(MODEL, read, VOCAB, requests, GREEDY, 2)]

    def ids(samples):
        return [sample.ids.tolist() for sample in samples]

    def guided(scale):
        return [dataclasses.replace(r, guides=(Guide(BLIND, scale),)) for r in alone]

    swapped = [Request(BLIND, (Guide(r.prefix, 4.0),), r.program, r.prompt_id) for r in alone]
    plain, forced, strong = run(alone), run(guided(1.0)), run(guided(4.0))
    assert ids(plain) == ids(forced) != ids(strong)
    for one, two in zip(plain, forced, strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=1e-5)
    assert ids(run(swapped)) != ids(strong)
    # Three streams, of which two know the same, are two streams.
    third = [dataclasses.replace(r, guides=(Guide(BLIND, 4.0), Guide(BLIND, 9.0))) for r in alone]
    assert ids(run(third)) == ids(strong)


def test_draws_do_not_depend_on_the_batch(read):
    requests = [text_request(i, 18 + 4 * i, scale=2.0) for i in range(4)]
    config = DecodeConfig(temperature_range=(2.0, 4.0), contrast="half", top_k=15, top_p=0.95)
    together = decode(MODEL, read, VOCAB, requests, config, samples=2, seed=5)
    narrow = dataclasses.replace(config, batch=4)
    again = decode(MODEL, read, VOCAB, requests[::-1], narrow, samples=2, seed=5)[::-1]
    pairs = zip(itertools.chain(*together), itertools.chain(*again), strict=True)
    for first, second in pairs:
        assert first.ids.tolist() == second.ids.tolist()
        assert first.temperature == second.temperature
        assert first.logprob == pytest.approx(second.logprob, abs=1e-4)
    drawn = {tuple(sample.ids) for samples in together for sample in samples}
    assert len(drawn) == 8
    # Settings are no part of the program.
    programs = steps.chunk._cache_size()
    changed = dataclasses.replace(
        narrow, top_k=12, top_p=0.99, contrast_k=3, temperature_range=None
    )
    other = decode(MODEL, read, VOCAB, requests, changed, samples=2, seed=6)
    assert steps.chunk._cache_size() == programs
    assert not drawn & {tuple(sample.ids) for samples in other for sample in samples}


def literal_order(chunks, slots):
    """Requests in the order in which they end: a slot takes the next one as soon as it is free."""
    waiting, running, order = list(range(len(chunks))), [None] * slots, []
    while waiting or any(running):
        for slot in range(slots):
            if running[slot] is None and waiting:
                running[slot] = [waiting[0], chunks[waiting.pop(0)]]
        for slot in range(slots):
            if running[slot] is not None:
                running[slot][1] -= 1
                if not running[slot][1]:
                    order.append(running[slot][0])
                    running[slot] = None
    return order


def test_slots_are_filled_again_as_soon_as_their_samples_are_done(read):
    """Texts of very different lengths through four slots: none waits for the longest."""
    requests = [text_request(i, 6, (Words(48),)) for i in range(12)]
    config = DecodeConfig(temperature=1.5, batch=4)
    found = decode(MODEL, read, VOCAB, requests, config, seed=4)
    meter, order, seen = Meter(), [], {}

    def watch(request, sample, ids):
        before = seen.get((request, sample), [])
        assert ids[: len(before)].tolist() == before
        seen[request, sample] = ids.tolist()

    each = decode_each(MODEL, read, VOCAB, requests, config, 1, 4, meter, watch)
    for done in itertools.chain.from_iterable(each):
        order.append(done.request)
        for offset, sample in enumerate(done.samples):
            alone = found[done.request][done.first + offset]
            assert sample.ids.tolist() == alone.ids.tolist() == seen[done.request, offset]
    chunks = [-(-max(len(s.ids) for s in samples) // plan.CHUNK) for samples in found]
    assert len(set(chunks)) > 1, "all texts are of like length; choose another seed"
    assert order == literal_order(chunks, slots=4)
    emitted = sum(len(sample.ids) for samples in found for sample in samples)
    assert meter.decode_tokens == emitted
    assert meter.prefill_tokens == sum(len(request.prefix) - 1 for request in requests)
    assert meter.report(6)["decode_tokens_per_second"] == emitted / meter.decode_seconds


@pytest.mark.slow  # slots that are filled again are tested above, of a dozen texts
def test_prompts_of_mixed_lengths_keep_the_rows_busy(read):
    """A few hundred with 0, 1 or 2 documents in front: their slots are never empty for long."""
    lengths = np.random.default_rng(0).choice([6, 30, 60], 300)
    requests = [text_request(i, int(n), scale=2.0) for i, n in enumerate(lengths)]
    meter, found = Meter(), {}
    config = DecodeConfig(temperature=2.0, batch=24)
    for finished in decode_each(MODEL, read, VOCAB, requests, config, 1, 0, meter):
        found.update({done.request: done.samples[0] for done in finished})
    assert sorted(found) == list(range(300))
    assert meter.report(300)["busy_rows"] >= 0.95
    # Slots of the wider group were lent: the samples are those of a list of their own.
    short = np.flatnonzero(lengths == 6)[-8:]
    alone = decode(MODEL, read, VOCAB, [requests[i] for i in short], config)
    assert [one.ids.tolist() for (one,) in alone] == [found[i].ids.tolist() for i in short]


def test_slots_for_a_list_leave_few_empty_at_its_end():
    assert [plan.slots_for(jobs, 64) for jobs in (1, 3, 40, 64)] == [1, 4, 64, 64]
    for most in (4, 24, 64):
        sizes = {plan.slots_for(jobs, most) for jobs in range(most + 1, 40 * most)}
        assert len(sizes) <= 9, "each size is a program"
        for jobs in range(most + 1, 40 * most):
            slots = plan.slots_for(jobs, most)
            assert -(-jobs // slots) == -(-jobs // most), "it takes no longer than with all slots"


@pytest.mark.parametrize(
    ("slots", "used", "share"),
    [(32, 1, 8), (32, 4, 8), (32, 5, 4), (32, 9, 2), (32, 17, 1), (12, 1, 4), (5, 1, 1)],
)
def test_a_chunk_runs_the_smallest_part_of_the_slots_that_holds_all_jobs(slots, used, share):
    assert plan.front_share([*[None] * (used - 1), 0, *[None] * (slots - used)]) == share


def test_interleaved_documents_end_within_their_limit(read):
    program = (Interleaved(40),)
    requests = [text_request(i, 5, program) for i in range(4)]
    config = DecodeConfig(temperature=3.0)
    pictures = 0
    for (sample,) in decode(MODEL, read, VOCAB, requests, config, seed=3):
        assert sample.ids[-1] == VOCAB.eos
        assert len(sample.ids) <= 40
        segments = parse(sample.ids[:-1], VOCAB)
        pictures += sum(isinstance(segment, Image) for segment in segments)
    assert pictures, "the model drew nothing; choose another seed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "window"), [((8, 1, 1), 0), ((1, 8, 1), 4), ((2, 2, 2), 4), ((1, 1, 4), 0)]
)
def test_any_mesh_draws_the_same(variables, read, sizes, window, monkeypatch):
    """With the parameters laid out as in training; the cache is cut over the mesh."""
    requests = [text_request(i, 20, scale=2.0) for i in range(8)]
    config = DecodeConfig(temperature=2.0, batch=16)
    expected = decode(MODEL, read, VOCAB, requests, config)
    mesh = partition.make_mesh(MeshConfig(*sizes))
    row = jnp.zeros((1, 4), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), row, row, row)
    placed = as_read(jax.device_put(variables, partition.shardings(mesh, boxed)), CONFIG.dtype)
    chunk = steps.chunk

    def seen(*arguments):
        state, *rest = chunk(*arguments)
        for part in jax.tree.leaves((state.cache.prefix, state.cache.suffix)):
            local = part.addressable_shards[0].data.shape
            assert local[0] == part.shape[0] // (sizes[0] * sizes[1])
            assert local[1] == part.shape[1] // sizes[2]
        return state, *rest

    seen._cache_size = chunk._cache_size
    monkeypatch.setattr(steps, "chunk", seen)
    config = dataclasses.replace(config, speculate=window)
    found = decode(MODEL, placed, VOCAB, requests, config)
    for (one,), (other,) in zip(expected, found, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_more_samples_than_rows_are_made_in_turns(read):
    requests = [text_request(i, 20, scale=2.0) for i in range(2)]
    config = DecodeConfig(temperature=2.0, batch=4)
    few, many = (decode(MODEL, read, VOCAB, requests, config, samples=count) for count in (2, 5))
    for some, more in zip(few, many, strict=True):
        assert len(more) == 5
        assert [s.ids.tolist() for s in some] == [s.ids.tolist() for s in more[:2]]


def test_texts_end_by_themselves_or_at_their_limit_over_several_chunks(read):
    requests = [text_request(i, 5, (Words(limit),)) for i, limit in enumerate([40, 33, 48, 35])]
    config = DecodeConfig(temperature=1.5)
    lengths = []
    for request, (sample,) in zip(
        requests, decode(MODEL, read, VOCAB, requests, config, seed=2), strict=True
    ):
        assert sample.ids[-1] == VOCAB.eoss
        assert (sample.ids[:-1] >= VOCAB.first_text).all()
        assert 2 <= len(sample.ids) <= request.program[0].limit
        lengths.append(len(sample.ids))
    assert max(lengths) > plan.CHUNK, "no text crossed a chunk; choose another seed"
    assert len(set(lengths)) > 1


@pytest.mark.parametrize(
    ("narrows", "rows"), [pytest.param(False, 8, marks=pytest.mark.slow), (True, 6)]
)
def test_jobs_that_join_and_leave_running_slots_are_drawn_as_by_themselves(read, narrows, rows):
    """Each with its own seed, sampler and guidance; chunks of any length, of all slots or of those
    that are in use."""
    configs = [DecodeConfig(temperature=heat, top_p=p) for heat, p in [(2.0, 0.9), (0.5, 0.5)] * 2]
    asked = [text_request(i, 15 + i, scale=2.0 + i) for i in range(4)]
    kind = plan.SizeClass.of(asked[0], VOCAB)
    shape = kind.shape(2, MODEL.longest_prompt, guesses=False)
    meter = Meter()
    slots = Slots(MODEL, read, VOCAB, shape, configs[0], meter, narrows=narrows)
    jobs = [
        plan.SlotJob(i, request, 0, 1, config, seed=i)
        for i, (request, config) in enumerate(zip(asked, configs, strict=True))
    ]
    found = {}

    def run(count):
        for one in slots.advance(count=count):
            found[one.request] = one.samples[0].ids.tolist()

    slots.admit(jobs[:1])
    run(4)
    slots.admit(jobs[1:2])
    run(2)
    assert (slots.free, found) == (0, {})
    slots.drop(1)  # its place is for another before the next chunk
    assert slots.free == 1
    slots.admit(jobs[2:3])
    run(16)
    slots.admit(jobs[3:])
    run(16)
    assert slots.jobs == []
    assert meter.rows == rows
    alone = {
        job.index: decode(MODEL, read, VOCAB, [job.request], job.config, seed=job.seed)
        for job in jobs
        if job.index != 1
    }
    assert found == {index: one[0][0].ids.tolist() for index, one in alone.items()}


def test_prompts_of_one_bucket_share_one_program(read, monkeypatch):
    config = dataclasses.replace(GREEDY, batch=8)
    monkeypatch.setattr(steps, "_pass", chex.assert_max_traces(steps._pass, n=1))
    steps.chunk.clear_cache()

    def run(*lengths):
        requests = [text_request(i, length) for i, length in enumerate(lengths)]
        decode(MODEL, read, VOCAB, requests, config, samples=2)

    run(18, 20, 25, 27)
    programs = steps.prefill._cache_size(), steps.chunk._cache_size()
    run(17, 30, 19, 22, 23, 24, 25, 26)
    run(29, 28, 27, 26)
    assert (steps.prefill._cache_size(), steps.chunk._cache_size()) == programs
    steps.chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 4])
def test_memory_is_flat_over_a_thousand_generations(read, window):
    requests = [text_request(i, 20) for i in range(50)]
    config = dataclasses.replace(GREEDY, batch=8, speculate=window)
    held = []
    for seed in range(10):
        decode(MODEL, read, VOCAB, requests, config, samples=2, seed=seed)
        held.append(sum(array.nbytes for array in jax.live_arrays()))
    assert len(set(held[1:])) == 1


def test_buckets_waste_at_most_a_third_and_hold_whole_chunks():
    for length in range(1, 200):
        size = plan.bucket(length)
        assert size >= length
        assert size % plan.CHUNK == 0
        assert size - length < max(plan.CHUNK, size / 3 + 1)
        assert plan.bucket(size) == size


def test_a_prompt_too_long_for_the_context_says_lengths(read):
    request = text_request(4, CONFIG.context - 9)
    with pytest.raises(
        UserError, match=r"prompt 4 is 83 tokens long and asks for 9 more.* room for 7"
    ):
        decode(MODEL, read, VOCAB, [request], GREEDY)


def test_steps_of_one_row_copy_no_keys(read):
    """As XLA does of itself where a single entry is written."""
    prompt = jnp.arange(12)[None]
    start = jax.jit(functools.partial(MODEL.apply, method="prefill"))
    _, prefix = start(read, prompt, jnp.asarray([12]))
    cache = start_cache(prefix, jnp.asarray([12]), prompt[:, -1], samples=1, capacity=24)
    leaves, tree = jax.tree.flatten(cache)

    def step(cache, token):
        hidden, cache = MODEL.apply(read, token[None, None], cache, method="extend")
        return cache, hidden

    @functools.partial(jax.jit, donate_argnums=0)
    def run(leaves, tokens):
        cache, hidden = jax.lax.scan(step, jax.tree.unflatten(tree, leaves), tokens)
        return jax.tree.leaves(cache), hidden

    text = run.lower(leaves, prompt[0, :8]).compile().as_text()
    keys = r"f32\[1,4,24,8\]"  # rows, heads, capacity, width of a head
    assert re.search(keys, text)
    assert not re.search(rf"{keys}\S* copy\(", text)


def test_room_for_emitted_tokens_grows_by_quarters():
    shape = plan.ProgramShape(slots=1, samples=1, streams=1, width=64, capacity=1024)
    assert [shape.room(n) for n in (16, 256, 257, 768, 1008, 1040)] == [
        *(256, 256, 512, 768, 1024, 1024),
    ]
    assert [dataclasses.replace(shape, capacity=c).room(16) for c in (64, 128, 192)] == [
        64,
        128,
        128,
    ]
    # The 7B draws 16 guided images: 13.5 GB of weights, half a megabyte of each token and row.
    weights, entry = 13.5e9, 2 * 32 * 4096 * 2 * 32
    chunks = range(plan.CHUNK, 1025, plan.CHUNK)
    read = sum(weights + entry * shape.room(n) for n in chunks)
    assert read < 1.1 * sum(weights + entry * n for n in chunks)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [None, (2, 1, 2)])
def test_growing_room_changes_no_sample_and_reads_less(variables, read, monkeypatch, sizes):
    """Also of prompts that are admitted beside others that have emitted more, and on a mesh."""
    if sizes:
        mesh = partition.make_mesh(MeshConfig(*sizes))
        shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *[jnp.zeros((1, 1), jnp.int32)] * 3)
        read = as_read(jax.device_put(variables, partition.shardings(mesh, shapes)), CONFIG.dtype)
    program = lambda count: (Codes((None,) * count),)  # noqa: E731
    # One capacity, 64: the second slot is emptied and filled again while the first goes on.
    requests = [text_request(i, 9, program(n)) for i, n in enumerate((60, 50, 49, 60))]
    found = {}
    for room in (128, 16):
        monkeypatch.setattr(plan, "ROOM", room)
        meter = Meter()
        samples = {}
        for finished in decode_each(
            *(MODEL, read, VOCAB, requests, dataclasses.replace(GREEDY, batch=2)), meter=meter
        ):
            samples |= {done.request: done.samples[0].ids.tolist() for done in finished}
        found[room] = (samples, meter.decode_bytes)
    assert found[16][0] == found[128][0]
    assert [len(ids) for _, ids in sorted(found[16][0].items())] == [60, 50, 49, 60]
    assert found[16][1] < found[128][1]
