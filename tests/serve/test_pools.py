"""Who joins between two chunks."""

import math

from cm3jax.decode.plan import SizeClass
from cm3jax.decode.throughput import Meter
from cm3jax.generation.prompts import picture_prompt
from cm3jax.serve.drawing import Drawing
from cm3jax.serve.pools import Pool


def test_nobody_waits_longer_than_a_chunk_for_prompts_of_others(generator):
    """How fast prompts are read and what a chunk takes are measured: who joins fits into that."""
    requests = generator.requests([picture_prompt("a fox")] * 5)
    ids = sum(map(len, requests[0].prefixes))
    meter, size = Meter(), SizeClass.of(requests[0], generator.vocab)
    shape = size.shape(5, generator.model.longest_prompt, False)
    slots = generator.open_slots(shape, generator.decode, meter)
    pool = Pool(lambda: slots)
    for number, request in enumerate(requests):
        drawing = Drawing(
            request,
            generator.decode,
            seed=0,
            samples=1,
            rows=False,
            watched=False,
            attribute=False,
            changed=lambda: None,
        )
        drawing.number = number
        pool.add(drawing)
    slots.admit([pool._next()])
    assert slots.pause == math.inf, "nothing was timed"
    meter.prefill_tokens, meter.prefill_seconds = 1000, 1.0
    slots._chunk_seconds = 2.5 * ids / 1000
    assert slots.pause == 2.5 * ids
    assert [job.index for job in pool._joining(slots)] == [1, 2]
    slots._chunk_seconds = 0.5 * ids / 1000
    assert [job.index for job in pool._joining(slots)] == [3], "or it would never come"
