"""What the rows of jobs begin with: arrays of the host, which a program takes as they are."""

from collections.abc import Sequence

import jax
import numpy as np

from cm3jax.decode import grammar, sampling
from cm3jax.decode.drafts import UNKNOWN, Drafts
from cm3jax.decode.plan import ProgramShape, SlotJob
from cm3jax.decode.steps import RowConstants
from cm3jax.sequence.vocab import Vocab


def row_constants(
    jobs: Sequence[SlotJob], count: int, shape: ProgramShape, vocab: Vocab
) -> RowConstants:
    """The rows of `count` prompts, of which all but `jobs` are padding."""
    each = shape.samples
    total = count * each
    programs: list[grammar.Program] = [()] * total
    keys, temperatures = np.zeros((total, 2), np.uint32), np.ones(total, np.float32)
    contrasted = np.zeros(total, bool)
    scales = np.ones((total, shape.streams - 1), np.float32)
    for place, job in enumerate(jobs):
        mine = slice(place * each, (place + 1) * each)
        samples = job.first_sample + np.arange(each)
        contrasted[mine] = sampling.contrasted(job.config, samples)
        programs[mine] = [job.request.program] * job.samples + [()] * (each - job.samples)
        scales[mine] = [guide.scale for guide in job.request.guides]
    drawn = _sample_keys([job for job in jobs for _ in range(each)], each)
    used = len(jobs) * each
    keys[:used], temperatures[:used] = drawn.keys, drawn.temperatures
    table = grammar.compile_programs(programs, vocab, shape.capacity)
    return RowConstants(table, keys, temperatures, contrasted, scales)


def _sample_keys(jobs: Sequence[SlotJob], each: int) -> sampling.SampleKeys:
    """The keys of rows by their jobs, `each` rows of each job."""
    configs = [job.config for job in jobs]
    heats = [one.temperature_range or (one.temperature, one.temperature) for one in configs]
    return sampling.sample_keys(
        np.asarray([job.seed % 2**32 for job in jobs], np.uint32),
        np.asarray([job.request.prompt_id for job in jobs], np.int64),
        np.asarray([job.first_sample + row % each for row, job in enumerate(jobs)], np.int64),
        np.asarray(heats, np.float64).reshape(-1, 2).T,
    )


def drafts_of(jobs: Sequence[SlotJob], count: int, shape: ProgramShape) -> Drafts:
    """What the samples of `count` prompts may emit, of which all but `jobs` are padding."""
    prompt, tokens = shape.drafts
    ids = np.full((count, shape.samples, prompt + tokens), UNKNOWN, np.int32)
    for place, job in enumerate(jobs if prompt else ()):
        prefix = job.request.prefix
        ids[place, :, prompt - len(prefix) : prompt] = prefix
    rows = ids.reshape(count * shape.samples, prompt + tokens)
    fresh = (rows, np.full_like(rows, UNKNOWN), np.zeros((len(rows), 2), np.float32))
    known, read, scores = jax.device_put(fresh)
    return Drafts(known, read, scores, prompt)
