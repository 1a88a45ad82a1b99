"""Sets of slots, whose number does not grow with the variety of requests."""

import pytest

from cm3jax.decode import steps
from cm3jax.decode.throughput import Meter
from cm3jax.serve import pools
from cm3jax.serve.drawing import Drawing
from cm3jax.serve.limits import Limits
from cm3jax.serve.pools import Pools
from cm3jax.serve.protocol import ImageBody
from cm3jax.serve.reading import BodyReader

KINDS = ({}, {"guidance": 3.0}, {"top_p": 0.5}, {"top_k": 2})
SLOTS = 2


@pytest.fixture
def drawings(generator):
    """Makes drawings, with numbers from 0."""
    reader, count = BodyReader(generator, Limits()), iter(range(100))

    def make(n, **more):
        body = ImageBody(prompt="a red fox", n=n, seed=1, **more)
        drawing = Drawing(**vars(reader.picture(body)), changed=lambda: None)
        drawing.number = next(count)
        return drawing

    return make


def run(found):
    """Draw all there is, as the engine does; which drawings ended, and the sets at each turn."""
    order, sets = [], []
    for _ in range(1000):
        turns = found.turns()
        for pool in turns:
            for done in pool.step(row=2):
                drawing = pool.drawings[done.request]
                drawing.drawn[done.first] = done.samples[0]
                if len(drawing.drawn) == drawing.samples:
                    order.append(done.request)
                    del pool.drawings[done.request]
        sets.append(sum(pool._slots is not None for pool in found))
        if not found.active:
            return order, sets
    raise AssertionError("it does not end")


@pytest.mark.parametrize("most", [1, 2, 4])
def test_sets_of_slots_are_as_many_as_there_may_be(generator, drawings, most):
    found = Pools(generator, SLOTS, most, Meter())
    for kind in KINDS:
        found.add(drawings(3, **kind))
    order, sets = run(found)
    assert sorted(order) == [0, 1, 2, 3]
    assert max(sets) == most


def test_a_kind_does_not_wait_for_another_to_end(generator, drawings):
    found = Pools(generator, SLOTS, 1, Meter())
    found.add(drawings(8))
    found.add(drawings(1, guidance=3.0))
    found.add(drawings(1, top_p=0.5))
    order, _ = run(found)
    assert order == [1, 2, 0]


def test_an_idle_set_serves_its_kind_again_until_another_needs_its_place(generator, drawings):
    found = Pools(generator, SLOTS, 2, Meter())
    kept = []
    for kind in (KINDS[0], KINDS[1], KINDS[0], KINDS[2], KINDS[1]):
        found.add(drawings(1, **kind))
        run(found)
        kept.append([pool._slots for pool in found])
    first, both, same, third, again = kept
    assert same == both
    assert both[0] is first[0]
    assert third[0] is both[1]  # the oldest is gone
    assert again == third


def test_programs_are_forgotten_when_there_are_too_many(generator, drawings, monkeypatch):
    found = Pools(generator, SLOTS, 1, Meter())
    found.add(drawings(1))
    run(found)
    before = steps.compiled_programs()
    monkeypatch.setattr(pools, "_PROGRAMS", before - 1)
    found.add(drawings(1, top_k=3))
    order, _ = run(found)
    assert order == [1]
    assert 0 < steps.compiled_programs() < max(before, 4)
