"""The decoding loop: prompts are prefilled into slots, then compiled chunks of one step run.

A slot holds a prompt and G samples that share its prefix in the cache. A guidance stream is another
prefix with the same samples, so P slots have P * W * G rows, slot by slot and in each stream by
stream. Between two chunks the host takes away slots whose samples are done and admits waiting
prompts in their place. Lengths and numbers of slots are rounded up to a few sizes: prompts within a
bucket run the same programs. Where the parameters lie on a mesh, slots are cut over it like the
rows of a batch.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax import partition
from cm3jax.config import DecodeConfig, DecoderConfig
from cm3jax.decode import grammar, sampling
from cm3jax.decode.meter import Meter
from cm3jax.decode.method import Method, contrasted
from cm3jax.errors import UserError
from cm3jax.model.cache import Cache, KeyValues, start_cache
from cm3jax.model.decoder import Decoder
from cm3jax.shapes import Array, Bool, Float, Int, UInt32
from cm3jax.vocab import Vocab

CHUNK = 16
"""Tokens between two looks of the host."""
ADMITTED = 8
"""Prompts that are prefilled at once, at most."""

Watch = Callable[[int, int, Int[np.ndarray, " T"]], None]
"""Gets request, sample and the ids that it has emitted so far, after every chunk."""


@dataclasses.dataclass(frozen=True)
class Guide:
    """A stream that knows less than the one before it."""

    prefix: Int[np.ndarray, " U"]
    """Ids that it has seen; at least one."""
    scale: float
    """How strongly samples are pushed away from it; 1 changes nothing."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and what to emit after it."""

    prefix: Int[np.ndarray, " L"]
    """Ids that the conditional stream has seen; at least one."""
    guides: tuple[Guide, ...]
    """Further streams, each knowing less."""
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
    sampled: int
    """How many ids were sampled, not forced."""
    temperature: float
    """The temperature that they were sampled at."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """Samples of one request that were done together."""

    request: int
    """Place of the request."""
    first: int
    """Number of the first sample."""
    samples: list[Sample]


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

    See `decode_each`.
    """
    found: list[list[Sample | None]] = [[None] * samples for _ in requests]
    for finished in decode_each(model, variables, vocab, requests, config, samples, seed):
        for done in finished:
            found[done.request][done.first : done.first + len(done.samples)] = done.samples
    return found


def decode_each(
    model: Decoder,
    variables: dict,
    vocab: Vocab,
    requests: Sequence[Request],
    config: DecodeConfig,
    samples: int = 1,
    seed: int = 0,
    meter: Meter | None = None,
    watch: Watch | None = None,
) -> Iterator[list[Finished]]:
    """Decode `samples` of every request, and give them as they are done, chunk by chunk.

    A sample's noise depends on (seed, prompt id, sample id, tokens emitted) alone. Raises
    `UserError`, before anything is decoded, if a prompt and what it asks for are longer than the
    model's context. Runs on the mesh that `variables` lie on.
    """
    for request in requests:
        _require_fit(request, model.config.context)
    # Programs are compiled per vocabulary, but tokenizers do not matter to them.
    vocab = Vocab(vocab.config)
    meter, mesh = meter or Meter(), partition.mesh_of(variables)
    shards = partition.batch_shards(mesh) if mesh else 1
    for group in _plan(requests, samples, config, vocab, model.config.context, shards):
        yield from _Engine(model, variables, mesh, vocab, group, config, seed, meter).run(watch)


def bucket(length: int) -> int:
    """The size that a length is padded to: 16, 32, 48, 64, 96, 128, 192, …"""
    size = CHUNK
    while size < length:
        size *= 2
    fits_below = size > 2 * CHUNK and length <= size * 3 // 4
    return size * 3 // 4 if fits_below else size


def _longest(request: Request) -> int:
    return max(len(prefix) for prefix in _prefixes(request))


def _prefixes(request: Request) -> list[np.ndarray]:
    return [request.prefix, *(guide.prefix for guide in request.guides)]


def _require_fit(request: Request, context: int) -> None:
    prompt, new = _longest(request), grammar.steps(request.program)
    if prompt + new > context:
        raise UserError(
            f"prompt {request.prompt_id} is {prompt} tokens long and asks for {new} more, but the "
            f"model's context is {context}; show fewer documents or shorten the text."
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request, and the samples of it that one slot makes."""

    index: int
    request: Request
    first_sample: int
    samples: int


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What programs are compiled for."""

    slots: int
    """P, a multiple of the pieces that a mesh cuts rows into."""
    samples: int
    """G, at least each job's samples."""
    ways: int
    """W, the number of streams."""
    width: int
    """Room for a prompt."""
    capacity: int
    """Room for emitted tokens."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """Jobs that go through the same slots."""

    jobs: list[_Job]
    shape: _Shape


def _plan(
    requests: Sequence[Request],
    samples: int,
    config: DecodeConfig,
    vocab: Vocab,
    context: int,
    shards: int,
) -> Iterator[_Group]:
    """Groups of one shape each: prompts that differ much in length don't run side by side."""
    jobs: dict[tuple[int, int, int, int], list[_Job]] = {}
    for index, request in enumerate(requests):
        ways = 1 + len(request.guides)
        most = max(1, config.batch // ways)
        size = -(-samples // -(-samples // most))
        program = request.program
        capacity = bucket(max(grammar.steps(program), grammar.columns(program, vocab)))
        scale = bucket(_longest(request)).bit_length() // 2  # within a factor of 4
        for first in range(0, samples, size):
            job = _Job(index, request, first, min(size, samples - first))
            jobs.setdefault((ways, size, capacity, scale), []).append(job)
    for (ways, size, capacity, _), members in sorted(jobs.items()):
        wanted = 1 << (len(members) - 1).bit_length()
        slots = min(wanted, max(1, config.batch // (size * ways)))
        slots = -(-slots // shards) * shards
        longest = max(_longest(job.request) for job in members)
        # Beyond the context there are no positions, not even for padding.
        width = min(bucket(longest - 1), context)
        yield _Group(members, _Shape(slots, size, ways, width, capacity))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "keys", "temperatures", "contrasted", "scales"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Rows:
    """What stays the same while a sample is decoded."""

    table: grammar.Table
    keys: UInt32[Array, "B 2"]
    temperatures: Float[Array, " B"]
    contrasted: Bool[Array, " B"]
    scales: Float[Array, "B U"]


@partial(jax.tree_util.register_dataclass, data_fields=["cache", "last", "states"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _State:
    """What a step changes."""

    cache: Cache
    last: Int[Array, " R"]
    """The newest id of every row of every stream, not yet in the cache."""
    states: Int[Array, " B"]
    """Where each sample's automaton stands."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "lengths", "last", "slots", "rows"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _New:
    """Prompts to admit; those of slot P are padding."""

    tokens: Int[Array, "new W S"]
    """All ids of the prompts but the last."""
    lengths: Int[Array, "new W"]
    last: Int[Array, "new W"]
    """The last id of a prompt is fed by the first step, so that all steps are alike."""
    slots: Int[Array, " new"]
    rows: _Rows
    """Of their samples, prompt by prompt."""


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "logprobs", "free"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Emitted:
    """What a few steps emitted."""

    ids: Int[Array, "*T B"]
    """`<pad>` after a sample's last."""
    logprobs: Float[Array, "*T B"]
    """0 where nothing was sampled, which probability 1 is too."""
    free: Bool[Array, "*T B"]


@dataclasses.dataclass
class _Slot:
    """What the samples of an admitted job have emitted."""

    job: _Job
    ids: list[np.ndarray]
    logprobs: Float[np.ndarray, " G"]
    sampled: Int[np.ndarray, " G"]
    temperatures: Float[np.ndarray, " G"]


class _Engine:
    """The slots of one group and what is in them."""

    def __init__(
        self,
        model: Decoder,
        variables: dict,
        mesh: jax.sharding.Mesh | None,
        vocab: Vocab,
        group: _Group,
        config: DecodeConfig,
        seed: int,
        meter: Meter,
    ):
        self._model, self._variables, self._vocab, self._mesh = model, variables, vocab, mesh
        self._shape, self._config, self._seed, self._meter = group.shape, config, seed, meter
        self._method = Method.of(config)
        self._waiting = deque(group.jobs)
        self._slots: list[_Slot | None] = [None] * group.shape.slots
        self._weights = _weights_read(variables)
        # Slots without a prompt have programs without states: their samples are done.
        self._rows = self._rows_of([], group.shape.slots)
        with self._on_mesh():
            if mesh is not None:
                self._rows = jax.device_put(self._rows, partition.batch_sharding(mesh))
            self._state = _start(model.config, group.shape)

    def _on_mesh(self) -> AbstractContextManager:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def run(self, watch: Watch | None) -> Iterator[list[Finished]]:
        """Work until no job is left."""
        while self._waiting or any(self._slots):
            free = [place for place, slot in enumerate(self._slots) if slot is None]
            while self._waiting and free:
                count = min(len(self._waiting), len(free), ADMITTED)
                self._admit(free[:count], [self._waiting.popleft() for _ in range(count)])
                free = free[count:]
            done = self._advance()
            if watch is not None:
                self._show(watch)
            finished = self._retire(done)
            if finished:
                yield finished

    def _admit(self, places: list[int], jobs: list[_Job]) -> None:
        """Prefill these jobs into these slots."""
        shape = self._shape
        count = 1 << (len(jobs) - 1).bit_length()
        tokens = np.zeros((count, shape.ways, shape.width), np.int32)
        lengths = np.zeros((count, shape.ways), np.int32)
        last = np.zeros((count, shape.ways), np.int32)
        for new, job in enumerate(jobs):
            for way, prefix in enumerate(_prefixes(job.request)):
                lengths[new, way], last[new, way] = len(prefix) - 1, prefix[-1]
                tokens[new, way, : len(prefix) - 1] = prefix[:-1]
        slots = np.full(count, shape.slots, np.int32)
        slots[: len(jobs)] = places
        rows = self._rows_of(jobs, count)
        new = _New(*map(jnp.asarray, (tokens, lengths, last, slots)), rows)
        begin, known = time.perf_counter(), _prefill._cache_size()
        with self._on_mesh():
            self._rows, self._state = _prefill(
                self._model, self._variables, self._rows, self._state, new, shape.samples
            )
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - begin
        if _prefill._cache_size() > known:
            self._meter.compile_seconds += seconds
        else:
            self._meter.prefilled(seconds, int(lengths.sum()))
        temperatures = np.asarray(rows.temperatures).reshape(count, shape.samples)
        for place, job, mine in zip(places, jobs, temperatures, strict=False):
            zeros = np.zeros(shape.samples)
            self._slots[place] = _Slot(job, [], zeros, zeros.astype(int), mine)

    def _rows_of(self, jobs: list[_Job], count: int) -> _Rows:
        """Rows of so many prompts, of which all but these are padding."""
        each, config = self._shape.samples, self._config
        total = count * each
        prompts, samples = np.zeros(total, np.int64), np.zeros(total, np.int64)
        programs: list[grammar.Program] = [()] * total
        scales = np.ones((total, self._shape.ways - 1), np.float32)
        for place, job in enumerate(jobs):
            mine = slice(place * each, (place + 1) * each)
            prompts[mine] = job.request.prompt_id
            samples[mine] = job.first_sample + np.arange(each)
            programs[mine] = [job.request.program] * job.samples + [()] * (each - job.samples)
            scales[mine] = [guide.scale for guide in job.request.guides]
        temperatures = config.temperature_range or (config.temperature, config.temperature)
        dice = sampling.dice(self._seed, prompts, samples, temperatures)
        return _Rows(
            table=grammar.compile_programs(programs, self._vocab, self._shape.capacity),
            keys=jnp.asarray(dice.keys),
            temperatures=jnp.asarray(dice.temperatures),
            contrasted=jnp.asarray(contrasted(config, samples)),
            scales=jnp.asarray(scales),
        )

    def _advance(self) -> Bool[np.ndarray, " P"]:
        """Run a chunk and give each slot what its samples emitted; which slots are done."""
        begin, known = time.perf_counter(), _chunk._cache_size()
        greedy = self._config.temperature == 0 and self._config.temperature_range is None
        call = (self._model, self._vocab, self._variables, self._method, greedy)
        with self._on_mesh():
            self._state, emitted, done = _chunk(*call, self._rows, self._state)
        ids, logprobs, free = (
            np.asarray(x).reshape(CHUNK, self._shape.slots, -1)
            for x in (emitted.ids, emitted.logprobs, emitted.free)
        )
        seconds = time.perf_counter() - begin
        for place, slot in enumerate(self._slots):
            if slot is not None:
                slot.ids.append(ids[:, place])
                slot.logprobs += logprobs[:, place].sum(0)
                slot.sampled += free[:, place].sum(0)
        if _chunk._cache_size() > known:
            self._meter.compile_seconds += seconds
        else:
            count = int((ids != self._vocab.pad).sum())
            self._meter.stepped(seconds, count, CHUNK * self._read_per_step())
        return np.asarray(done).reshape(self._shape.slots, -1).all(1)

    def _read_per_step(self) -> int:
        """Bytes: the weights, and keys and values of prompts and rows at their padded lengths."""
        cache = self._state.cache
        parts = (*jax.tree.leaves(cache.prefix), *jax.tree.leaves(cache.suffix))
        return self._weights + sum(part.nbytes for part in parts)

    def _show(self, watch: Watch) -> None:
        for slot in filter(None, self._slots):
            for offset in range(slot.job.samples):
                watch(slot.job.index, slot.job.first_sample + offset, self._ids(slot, offset))

    def _ids(self, slot: _Slot, offset: int) -> np.ndarray:
        ids = np.concatenate(slot.ids)[:, offset]
        return ids[ids != self._vocab.pad]

    def _retire(self, done: Bool[np.ndarray, " P"]) -> list[Finished]:
        """Empty the slots whose samples are all done."""
        out = []
        for place, slot in enumerate(self._slots):
            if slot is None or not done[place]:
                continue
            self._slots[place] = None
            samples = [
                Sample(
                    self._ids(slot, offset),
                    float(slot.logprobs[offset]),
                    int(slot.sampled[offset]),
                    float(slot.temperatures[offset]),
                )
                for offset in range(slot.job.samples)
            ]
            out.append(Finished(slot.job.index, slot.job.first_sample, samples))
        return out


@partial(jax.jit, static_argnums=(0, 1))
def _start(config: DecoderConfig, shape: _Shape) -> _State:
    """Slots without prompts."""
    prompts = shape.slots * shape.ways
    sizes = (config.layers, prompts, shape.width, config.groups, config.head_width)
    empty = KeyValues(*(jnp.zeros(sizes, config.dtype) for _ in range(2)))
    cache = start_cache(empty, jnp.zeros(prompts, jnp.int32), shape.samples, shape.capacity)
    last = jnp.zeros(prompts * shape.samples, jnp.int32)
    return _laid_out(_State(cache, last, jnp.zeros(shape.slots * shape.samples, jnp.int32)))


def _laid_out(state: _State) -> _State:
    """The state as it lies between two programs: rows cut over the mesh, and heads of the cache."""
    cache, heads = state.cache, (None, "batch", None, "heads", None)
    prefix, suffix = jax.tree.map(
        lambda x: partition.along(x, *heads), (cache.prefix, cache.suffix)
    )
    prefix_lengths, lengths, last, states = map(
        partition.by_rows, (cache.prefix_lengths, cache.lengths, state.last, state.states)
    )
    return _State(Cache(prefix, prefix_lengths, suffix, lengths), last, states)


def _weights_read(variables: dict) -> int:
    """Bytes of parameters that a step reads: of tables that are looked up in, next to nothing."""
    params = variables["params"]
    looked_up = {"position", *({"embedding"} if "head" in params else ())}
    read = {name: part for name, part in params.items() if name not in looked_up}
    return sum(leaf.nbytes for leaf in jax.tree.leaves(read))


@partial(jax.jit, static_argnames=("model", "samples"), donate_argnames=("rows", "state"))
def _prefill(model, variables, rows: _Rows, state: _State, new: _New, samples: int):
    """Rows and state with new prompts in their slots."""
    ways, width = new.tokens.shape[1:]
    tokens, lengths = new.tokens.reshape(-1, width), new.lengths.reshape(-1)
    _, found = model.apply(variables, tokens, lengths, method="prefill")

    cache = state.cache
    # Padding goes behind the last slot, where it is dropped.
    places = (new.slots[:, None] * ways + jnp.arange(ways)).reshape(-1)
    of_prompt = (places[:, None] * samples + jnp.arange(samples)).reshape(-1)
    of_sample = (new.slots[:, None] * samples + jnp.arange(samples)).reshape(-1)

    def put(old, more, at):
        return old.at[at].set(more, mode="drop")

    cache = Cache(
        jax.tree.map(lambda old, more: put(old, more, np.s_[:, places]), cache.prefix, found),
        put(cache.prefix_lengths, lengths, places),
        cache.suffix,
        put(cache.lengths, 0, of_prompt),
    )
    last = put(state.last, jnp.repeat(new.last.reshape(-1), samples), of_prompt)
    rows = jax.tree.map(
        lambda old, more: partition.by_rows(put(old, more, of_sample)), rows, new.rows
    )
    return rows, _laid_out(_State(cache, last, put(state.states, 0, of_sample)))


@partial(jax.jit, static_argnames=("model", "vocab", "greedy"), donate_argnames="state")
def _chunk(
    model, vocab, variables, method: Method, greedy: bool, rows: _Rows, state: _State
) -> tuple[_State, _Emitted, Bool[Array, " B"]]:
    """The state after a chunk, what was emitted, and which samples are done."""
    step = partial(_step, model, vocab, variables, method, greedy, rows)
    state, emitted = jax.lax.scan(step, state, None, CHUNK)
    done = state.states >= rows.table.lengths
    # What the host reads is whole on every device, hence in every process.
    emitted, done = jax.tree.map(partition.along, (emitted, done))
    return _laid_out(state), emitted, done


def _step(model, vocab, variables, method, greedy, rows: _Rows, state: _State, _):
    """One more id of every sample; those that are done emit `<pad>`."""
    logits, cache = _forward(model, variables, state)
    logits = _by_stream(logits, state)
    emitted = _by_stream(state.cache.lengths, state)[0]
    kinds = grammar.kinds(vocab)
    allowed = grammar.permitted(rows.table, state.states, emitted, kinds)
    scores = method.scores(logits, allowed, rows.scales.T, rows.temperatures, rows.contrasted)
    # Where no sample needs noise, drawing it would cost more than all else but the weights.
    noise = None if greedy else sampling.noise(rows.keys, emitted, vocab.size)
    drawn = sampling.choose(scores, noise, rows.temperatures == 0)
    logprob = jax.nn.log_softmax(jnp.where(allowed, logits[0], -jnp.inf))
    logprob = jnp.take_along_axis(logprob, drawn[:, None], axis=-1)[:, 0]

    done = state.states >= rows.table.lengths
    forced = grammar.forced(rows.table, state.states)
    free = ~done & (forced == grammar.FREE)
    ids = jnp.where(free, drawn, jnp.where(done, vocab.pad, forced))
    states = grammar.advance(rows.table, state.states, ids, kinds)
    slots, ways, samples = _sizes(state)
    last = jnp.broadcast_to(ids.reshape(slots, 1, samples), (slots, ways, samples)).reshape(-1)
    return _State(cache, last, states), _Emitted(ids, jnp.where(free, logprob, 0.0), free)


def _sizes(state: _State) -> tuple[int, int, int]:
    """P, W and G."""
    rows, prefixes, samples = map(len, (state.last, state.cache.prefix_lengths, state.states))
    each = rows // prefixes
    return samples // each, rows // samples, each


def _by_stream(x: Array, state: _State) -> Array:
    """What there is of every row, for every stream of every sample: (R, ...) as (W, B, ...)."""
    slots, ways, samples = _sizes(state)
    return (
        x.reshape(slots, ways, samples, *x.shape[1:]).swapaxes(0, 1).reshape(ways, -1, *x.shape[1:])
    )


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
    return partition.by_rows(model.apply(variables, hidden[:, 0], method="logits")), cache
