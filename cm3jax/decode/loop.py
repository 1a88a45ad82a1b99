"""The decoding loop: prefill once, then compiled chunks of one step function.

Prompts are sorted by length and decoded P at a time, each with G samples that share its prefix in
the cache. A guidance stream is another prefix with the same samples, so a batch has W * P * G rows,
stream by stream. Lengths and batches are rounded up to a few sizes: prompts within a bucket run
the same two programs.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode import grammar, sampling
from cm3jax.decode.guidance import guide, streams
from cm3jax.errors import UserError
from cm3jax.model.cache import Cache, start_cache
from cm3jax.model.decoder import Decoder
from cm3jax.shapes import Array, Float, Int, UInt32
from cm3jax.vocab import Vocab

CHUNK = 16
"""Tokens between two looks of the host."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and what to emit after it."""

    prefix: Int[np.ndarray, " L"]
    """Ids that the conditional stream has seen; at least one."""
    unconditional: Int[np.ndarray, " U"] | None
    """Ids that the unconditional stream has seen; None is never guided."""
    program: grammar.Program
    """What follows."""
    prompt_id: int
    """Names the prompt's noise."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one row emitted."""

    ids: Int[np.ndarray, " T"]
    """The ids, forced ones included."""
    logprob: float
    """Log-probability of the sampled ids, in nats: of the conditional stream, among the ids that
    the grammar permits, at temperature 1."""
    temperature: float
    """The temperature that they were sampled at."""


def decode(
    model: Decoder,
    variables: dict,
    vocab: Vocab,
    requests: Sequence[Request],
    config: DecodeConfig,
    samples: int = 1,
    seed: int = 0,
) -> list[list[Sample]]:
    """Decode `samples` of every request; results in the order of `requests`, then of samples.

    A sample's noise depends on (seed, prompt id, sample id, tokens emitted) alone. Raises
    `UserError` if a prompt and what it asks for are longer than the model's context.
    """
    for request in requests:
        _require_fit(request, model.config.context)
    # Programs are compiled per vocabulary, but tokenizers do not matter to them.
    vocab = Vocab(vocab.config)
    found: list[list[Sample | None]] = [[None] * samples for _ in requests]
    for batch in _plan(requests, samples, config):
        emitted = _run(batch, model, variables, vocab, config, seed)
        for place, job in enumerate(batch.jobs):
            for offset in range(job.samples):
                row = place * batch.samples + offset
                ids = emitted.ids[:, row]
                found[job.index][job.first_sample + offset] = Sample(
                    ids[ids != vocab.pad],
                    float(emitted.logprobs[row]),
                    float(emitted.temperatures[row]),
                )
    return found


def bucket(length: int) -> int:
    """The size that a length is padded to: 16, 32, 48, 64, 96, 128, 192, …"""
    size = CHUNK
    while size < length:
        size *= 2
    fits_below = size > 2 * CHUNK and length <= size * 3 // 4
    return size * 3 // 4 if fits_below else size


def _require_fit(request: Request, context: int) -> None:
    blind = () if request.unconditional is None else request.unconditional
    prompt, new = max(len(request.prefix), len(blind)), grammar.steps(request.program)
    if prompt + new > context:
        raise UserError(
            f"prompt {request.prompt_id} is {prompt} tokens long and asks for {new} more, but the "
            f"model's context is {context}; show fewer documents or shorten the text."
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request, and the samples of it that one batch makes."""

    index: int
    request: Request
    first_sample: int
    samples: int


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Jobs that run together, and the shape that they run in."""

    jobs: list[_Job]
    prompts: int
    """P, at least the number of jobs; the rest is padding."""
    samples: int
    """G, at least each job's samples."""
    ways: int
    """W, the number of guidance streams."""
    capacity: int
    """Room for emitted tokens."""

    def prefixes(self) -> list[np.ndarray]:
        """The W * P prompts, stream by stream; padding prompts are one `<pad>`."""
        padding = [np.zeros(1, np.int32)] * (self.prompts - len(self.jobs))
        out = [job.request.prefix for job in self.jobs] + padding
        if self.ways == 2:
            out += [job.request.unconditional for job in self.jobs] + padding
        return out

    def rows(self) -> list[tuple[int, int, grammar.Program]]:
        """Prompt id, sample id and program of the P * G samples; padding has an empty program."""
        out = []
        for job in self.jobs:
            for offset in range(self.samples):
                program = job.request.program if offset < job.samples else ()
                out.append((job.request.prompt_id, job.first_sample + offset, program))
        return out + [(0, 0, ())] * (self.prompts * self.samples - len(out))


def _plan(requests: Sequence[Request], samples: int, config: DecodeConfig) -> Iterator[_Batch]:
    """Batches of one shape each, prompts of like length together."""
    jobs: dict[tuple[int, int, int], list[_Job]] = {}
    for index, request in enumerate(requests):
        ways = 1 if request.unconditional is None else streams(config.guidance_scale)
        most = max(1, config.batch // ways)
        size = -(-samples // -(-samples // most))
        shape = (ways, size, bucket(grammar.steps(request.program)))
        for first in range(0, samples, size):
            job = _Job(index, request, first, min(size, samples - first))
            jobs.setdefault(shape, []).append(job)
    for (ways, size, capacity), members in sorted(jobs.items()):
        members.sort(key=lambda job: len(job.request.prefix))
        wanted = 1 << (len(members) - 1).bit_length()
        prompts = min(wanted, max(1, config.batch // (size * ways)))
        for start in range(0, len(members), prompts):
            yield _Batch(members[start : start + prompts], prompts, size, ways, capacity)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "keys", "temperatures", "scale", "top_p"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Rows:
    """What stays the same while a batch is decoded."""

    table: grammar.Table
    keys: UInt32[Array, "B 2"]
    temperatures: Float[Array, " B"]
    scale: Float[Array, ""]
    top_p: Float[Array, ""] | None


@partial(jax.tree_util.register_dataclass, data_fields=["cache", "last", "states"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _State:
    """What a step changes."""

    cache: Cache
    last: Int[Array, " R"]
    """The newest id of every row of every stream, not yet in the cache."""
    states: Int[Array, " B"]
    """Where each sample's automaton stands."""


@dataclasses.dataclass(frozen=True)
class _Emitted:
    """What a batch's samples emitted."""

    ids: Int[np.ndarray, "T B"]
    """`<pad>` after a sample's last."""
    logprobs: Float[np.ndarray, " B"]
    temperatures: Float[np.ndarray, " B"]


def _run(
    batch: _Batch, model: Decoder, variables: dict, vocab: Vocab, config: DecodeConfig, seed: int
) -> _Emitted:
    prefixes = batch.prefixes()
    lengths = np.asarray([len(prefix) - 1 for prefix in prefixes], np.int32)
    # Beyond the context there are no positions, not even for padding.
    width = min(bucket(int(lengths.max())), model.config.context)
    tokens = np.zeros((len(prefixes), width), np.int32)
    for row, prefix in enumerate(prefixes):
        tokens[row, : lengths[row]] = prefix[:-1]
    rows = _rows(batch, vocab, config, seed)
    cache = _prefill(model, variables, tokens, lengths, batch.samples, batch.capacity)
    # The last id of a prompt is fed by the first step, so that all steps are alike.
    last = np.repeat([prefix[-1] for prefix in prefixes], batch.samples).astype(np.int32)
    states = np.zeros(batch.prompts * batch.samples, np.int32)
    state = _State(cache, jnp.asarray(last), jnp.asarray(states))
    ids, logprobs = [], np.zeros(len(states))
    for _ in range(batch.capacity // CHUNK):
        state, chunk = _chunk(model, vocab, variables, rows, state)
        ids.append(np.asarray(chunk.ids))
        logprobs += np.asarray(chunk.logprobs).sum(0)
        if np.all(np.asarray(state.states) >= np.asarray(rows.table.lengths)):
            break
    return _Emitted(np.concatenate(ids), logprobs, np.asarray(rows.temperatures))


def _rows(batch: _Batch, vocab: Vocab, config: DecodeConfig, seed: int) -> _Rows:
    prompt_ids, sample_ids, programs = zip(*batch.rows(), strict=True)
    temperatures = config.temperature_range or (config.temperature, config.temperature)
    dice = sampling.dice(seed, np.asarray(prompt_ids), np.asarray(sample_ids), temperatures)
    return _Rows(
        table=grammar.compile_programs(programs, vocab, batch.capacity),
        keys=jnp.asarray(dice.keys),
        temperatures=jnp.asarray(dice.temperatures),
        scale=jnp.asarray(np.float32(config.guidance_scale)),
        top_p=jnp.asarray(np.float32(config.top_p)) if config.top_p < 1 else None,
    )


@partial(jax.jit, static_argnames=("model", "samples", "capacity"))
def _prefill(model, variables, tokens, lengths, samples, capacity) -> Cache:
    """The cache after the prompts, ready for `samples` rows each."""
    _, prefix = model.apply(variables, tokens, lengths, method="prefill")
    return start_cache(prefix, lengths, samples, capacity)


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "logprobs"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Chunk:
    """What a few steps emitted."""

    ids: Int[Array, "*T B"]
    logprobs: Float[Array, "*T B"]


@partial(jax.jit, static_argnames=("model", "vocab"), donate_argnames="state")
def _chunk(model, vocab, variables, rows: _Rows, state: _State) -> tuple[_State, _Chunk]:
    return jax.lax.scan(partial(_step, model, vocab, variables, rows), state, None, CHUNK)


def _step(model, vocab, variables, rows: _Rows, state: _State, _) -> tuple[_State, _Chunk]:
    """One more id of every sample; those that are done emit `<pad>`."""
    logits, cache = _forward(model, variables, state)
    logits = logits.reshape(-1, len(state.states), vocab.size)
    emitted = state.cache.lengths[: len(state.states)]
    allowed = grammar.permitted(rows.table, state.states, grammar.kinds(vocab))
    guided = jnp.where(allowed, guide(logits, rows.scale), -jnp.inf)
    noise = sampling.noise(rows.keys, emitted, vocab.size)
    drawn = sampling.choose(guided, noise, rows.temperatures, rows.top_p)
    logprob = jax.nn.log_softmax(jnp.where(allowed, logits[0], -jnp.inf))
    logprob = jnp.take_along_axis(logprob, drawn[:, None], axis=-1)[:, 0]

    done = state.states >= rows.table.lengths
    forced = grammar.forced(rows.table, state.states)
    free = ~done & (forced == grammar.FREE)
    ids = jnp.where(free, drawn, jnp.where(done, vocab.pad, forced))
    states = grammar.advance(rows.table, state.states, ids, vocab.eoss)
    last = jnp.tile(ids, len(state.last) // len(ids))
    return _State(cache, last, states), _Chunk(ids, jnp.where(free, logprob, 0.0))


def _forward(model, variables, state: _State) -> tuple[Float[Array, "R V"], Cache]:
    """Logits after the newest id of every row, and the cache with that id in it."""
    cache = state.cache
    per_prefix = len(cache.lengths) // len(cache.prefix_lengths)
    positions = jnp.repeat(cache.prefix_lengths, per_prefix) + cache.lengths
    # Samples that are done may stand beyond the table; nobody reads what they compute.
    positions = jnp.minimum(positions, model.config.context - 1)
    hidden, cache = model.apply(
        variables, state.last[:, None], positions[:, None], cache, method="extend"
    )
    return model.apply(variables, hidden[:, 0], method="logits"), cache
