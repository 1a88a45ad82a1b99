"""What the rows of jobs begin with."""

from collections.abc import Sequence

import jax.numpy as jnp
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
        mine, config = slice(place * each, (place + 1) * each), job.config
        samples = job.first_sample + np.arange(each)
        prompts = np.full(each, job.request.prompt_id, np.int64)
        heat = config.temperature_range or (config.temperature, config.temperature)
        drawn = sampling.sample_keys(job.seed, prompts, samples, heat)
        keys[mine], temperatures[mine] = drawn.keys, drawn.temperatures
        contrasted[mine] = sampling.contrasted(config, samples)
        programs[mine] = [job.request.program] * job.samples + [()] * (each - job.samples)
        scales[mine] = [guide.scale for guide in job.request.guides]
    return RowConstants(
        grammar.compile_programs(programs, vocab, shape.capacity),
        *map(jnp.asarray, (keys, temperatures, contrasted, scales)),
    )


def drafts_of(jobs: Sequence[SlotJob], count: int, shape: ProgramShape) -> Drafts:
    """What the samples of `count` prompts may emit, of which all but `jobs` are padding."""
    prompt, tokens = shape.drafts
    ids = np.full((count, shape.samples, prompt + tokens), UNKNOWN, np.int32)
    for place, job in enumerate(jobs if prompt else ()):
        prefix = job.request.prefix
        ids[place, :, prompt - len(prefix) : prompt] = prefix
    return Drafts.before(jnp.asarray(ids.reshape(count * shape.samples, prompt + tokens)), prompt)
