"""Who joins between two chunks, and whose turn it is."""

import dataclasses
import itertools
import math
import types

import pytest

from cm3jax.decode.plan import SizeClass
from cm3jax.decode.throughput import Meter
from cm3jax.generation.prompts import Wanted, picture_prompt
from cm3jax.serve.drawing import Drawing, ServedRequest
from cm3jax.serve.engine import DrawingEngine
from cm3jax.serve.pools import Pool, Pools


def drawn(request, config, number, samples=1):
    asked = ServedRequest(request, config, 0, samples, rows=False, watched=False, attribute=False)
    return Drawing(asked, lambda: None, number=number)


def test_nobody_waits_longer_than_a_chunk_for_prompts_of_others(generator):
    """How fast prompts are read and what a chunk takes are measured: who joins fits into that."""
    requests = generator.requests([picture_prompt("a fox")] * 5)
    ids = sum(map(len, requests[0].prefixes))
    meter, size = Meter(), SizeClass.of(requests[0], generator.vocab)
    shape = size.shape(5, generator.model.longest_prompt, False)
    slots = generator.open_slots(shape, generator.decode, meter)
    pool = Pool(lambda: slots)
    for number, request in enumerate(requests):
        pool.add(drawn(request, generator.decode, number))
    slots.admit([pool._next()])
    assert slots.pause == math.inf, "nothing was timed"
    # Of prompts that are known nothing is read: that makes them no slower.
    meter.prefill_tokens, meter.joined_tokens, meter.prefill_seconds = 0, 1000, 1.0
    slots._chunk_seconds = 2.5 * ids / 1000
    assert slots.pause == 2.5 * ids
    assert [job.index for job in pool._joining(slots)] == [1, 2]
    slots._chunk_seconds = 0.5 * ids / 1000
    assert [job.index for job in pool._joining(slots)] == [3], "or it would never come"


def test_prompts_that_are_known_count_among_those_that_join():
    meter = Meter()
    meter.prefilled(1.0, 100)
    meter.prefilled(1.0, 0, known=900)
    assert (meter.prefill_tokens, meter.joined_tokens, meter.prefill_seconds) == (100, 1000, 2.0)


class Rows(Pool):
    """In place of a pool: chunks of a row."""

    ready = True

    def __init__(self, chunks=100):
        self.passes, self.drawings, self.left, self.steps = 4, {}, chunks, 0

    def step(self, row):
        assert row == 4
        self.steps += 1
        self.ready = self.steps < self.left
        return []


@pytest.mark.parametrize(("chunks", "gone", "steps"), [(100, [], 4), (2, [], 2), (100, [None], 1)])
def test_a_turn_is_a_whole_chunk_however_short_its_chunks_are(chunks, gone, steps):
    engine = object.__new__(DrawingEngine)
    config = types.SimpleNamespace(grid=4)
    engine._generator = types.SimpleNamespace(vocab=types.SimpleNamespace(config=config))
    engine._gone, pool = gone, Rows(chunks)
    engine._turn(pool)
    assert pool.steps == steps


def test_a_request_of_a_narrower_class_joins_slots_to_spare(generator):
    """As long as they are open for their own kind; one by itself gets its own."""
    pools = Pools(generator, 4, 4, Meter())
    numbers = itertools.count()

    def add(samples=1, room=8):
        config = dataclasses.replace(generator.decode, max_document_tokens=room)
        prompt = picture_prompt("a fox")
        wanted = Wanted.PICTURE if room == 8 else Wanted.DOCUMENT
        (request,) = generator.requests([dataclasses.replace(prompt, wanted=wanted)], None, config)
        drawing = drawn(request, config, next(numbers), samples)
        pools.add(drawing)
        return drawing

    narrow = add()
    wide = add(room=40)
    assert pools._host(next(iter(pools._line)), narrow) is None, "those in line have no slots yet"
    own, other = pools.turns()
    assert (own.drawings, other.drawings) == ({0: narrow}, {1: wide})
    guest = add()
    assert (guest.guest, other.drawings[2]) == (True, guest)
    add(samples=3)
    assert list(own.drawings) == [0, 3], "the wide set has no slots for three more"
    pools.drop(wide)
    add()
    assert list(own.drawings) == [0, 3, 4], "the wide set draws only for guests now"
