"""The decoding loop: prompts are prefilled into slots, then compiled chunks of one step run.

Between two chunks the host takes away slots whose samples are done and admits waiting prompts in
their place. Where the parameters are on a mesh, slots are sharded over it like the rows of a batch.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax import partition
from cm3jax.config import DecodeConfig
from cm3jax.decode import grammar, sampling, steps
from cm3jax.decode.drafts import Drafts
from cm3jax.decode.pace import pace_of
from cm3jax.decode.params import bytes_per_step
from cm3jax.decode.plan import CHUNK, Group, ProgramShape, SlotJob, plan_groups
from cm3jax.decode.request import Request
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.model.cache import KeyValues
from cm3jax.model.language_model import LanguageModel
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Bool, Float, Int

ADMITTED = 8
"""Prompts that are prefilled at once, at most."""

Watch = Callable[[int, int, Int[np.ndarray, " T"]], None]
"""Gets request, sample and the ids that it has emitted so far, after every chunk."""


@dataclasses.dataclass(frozen=True, eq=False)
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
    model: LanguageModel,
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
    found: list[dict[int, Sample]] = [{} for _ in requests]
    for finished in decode_each(model, variables, vocab, requests, config, samples, seed):
        for done in finished:
            found[done.request].update(enumerate(done.samples, done.first))
    return [[each[number] for number in range(samples)] for each in found]


def decode_each(
    model: LanguageModel,
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

    A sample's noise depends on (seed, prompt id, sample id, tokens emitted) only. Raises
    `UserError`, before anything is decoded, if a prompt leaves less room than what it asks for
    needs. `variables` are as `params.as_read` gives them; decoding runs on the mesh that they are
    on.
    """
    for request in requests:
        require_fit(request, model)
    mesh = partition.mesh_of(variables)
    asked = (requests, samples, config, seed, vocab, model.longest_prompt, shards_of(mesh))
    for group in plan_groups(*asked):
        slots = Slots(model, variables, vocab, group.shape, config, meter or Meter())
        yield from _run(slots, group, watch)


def _run(slots: "Slots", group: Group, watch: Watch | None) -> Iterator[list[Finished]]:
    """Work until no job is left."""
    waiting = deque(group.jobs)
    while waiting or slots.jobs:
        slots.admit([waiting.popleft() for _ in range(min(len(waiting), slots.free))])
        finished = slots.advance(watch)
        if finished:
            yield finished


def shards_of(mesh: jax.sharding.Mesh | None) -> int:
    """The pieces that rows are cut into: slots are a multiple of them."""
    return partition.batch_shards(mesh) if mesh else 1


def require_fit(request: Request, model: LanguageModel) -> None:
    """Raise `UserError` for a request whose prompt leaves less room than its answer needs."""
    new, room = grammar.steps(request.program), model.room(request.longest)
    if new > room:
        raise UserError(
            f"prompt {request.prompt_id} is {request.longest} tokens long and asks for {new} more, "
            f"but leaves the model room for {room}; show fewer documents or shorten the text."
        )


@dataclasses.dataclass(eq=False)
class _Slot:
    """What the samples of an admitted job have emitted."""

    job: SlotJob
    ids: list[np.ndarray]
    """A part [T, G] for each chunk, `<pad>` where nothing was emitted."""
    emitted: Int[np.ndarray, " G"]
    logprobs: Float[np.ndarray, " G"]
    sampled: Int[np.ndarray, " G"]
    temperatures: Float[np.ndarray, " G"]


class Slots:
    """Slots of one shape and what is in them; jobs come and go between two chunks.

    Jobs may differ in everything but the shape that they fit and which filters they sample with
    (the tree of `sampling.Method.of`): `config` is any of theirs.
    """

    def __init__(
        self,
        model: LanguageModel,
        variables: dict,
        vocab: Vocab,
        shape: ProgramShape,
        config: DecodeConfig,
        meter: Meter,
    ):
        self._model, self._variables, self._meter = model, variables, meter
        # Programs are compiled per vocabulary, but tokenizers do not matter to them.
        self._vocab, self._mesh = Vocab(vocab.config), partition.mesh_of(variables)
        self._shape, self._config = shape, config
        self._method = self._method_of_rows([config] * shape.slots)
        self._slots: list[_Slot | None] = [None] * shape.slots
        self._weights = bytes_per_step(variables)
        # An empty slot has programs without states, so its samples count as done.
        self._rows = self._rows_of([], shape.slots)
        with self._on_mesh():
            if self._mesh is not None:
                self._rows = jax.device_put(self._rows, partition.batch_sharding(self._mesh))
            program = (model, shape, jax.tree.structure(self._method), _greedy(config))
            self._pace = pace_of(config.speculate, program, self._trial)
            self._state = steps.start(model.config, shape, shape.room(CHUNK))

    def _trial(self, window: int) -> int:
        """Run a chunk of samples that draw codes without end; returns its passes."""
        shape = self._shape
        codes = (grammar.Codes((None,) * shape.capacity),)
        programs = [codes] * (shape.slots * shape.samples)
        table = grammar.compile_programs(programs, self._vocab, shape.capacity)
        rows = dataclasses.replace(self._rows, table=table)
        state = steps.start(self._model.config, shape, shape.room(CHUNK * window))
        call = (self._model, self._vocab, self._variables, self._method, _greedy(self._config))
        begin = time.perf_counter()
        passes = int(steps.chunk(*call, rows, state, CHUNK, window)[-1])
        self._meter.compile_seconds += time.perf_counter() - begin
        return passes

    def _on_mesh(self) -> AbstractContextManager:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    @property
    def free(self) -> int:
        """How many slots are empty."""
        return self._slots.count(None)

    @property
    def jobs(self) -> list[SlotJob]:
        """What is in the others."""
        return [slot.job for slot in self._slots if slot is not None]

    def admit(self, jobs: Sequence[SlotJob]) -> None:
        """Prefill these jobs, at most `free`, into slots."""
        places = [place for place, slot in enumerate(self._slots) if slot is None]
        for first in range(0, len(jobs), ADMITTED):
            part = list(jobs[first : first + ADMITTED])
            self._admit(places[first : first + len(part)], part)
        if jobs:
            self._method = self._method_of_rows(
                [self._config if slot is None else slot.job.config for slot in self._slots]
            )

    def advance(self, watch: Watch | None = None, count: int = CHUNK) -> list[Finished]:
        """Run a chunk of `count` steps; what is done leaves its slot."""
        done = self._advance(count)
        if watch is not None:
            self._show(watch)
        return self._retire(done)

    def drop(self, index: int) -> None:
        """Empty the slots of a request that nobody waits for any more."""
        for place, slot in enumerate(self._slots):
            if slot is not None and slot.job.index == index:
                self._slots[place] = None

    def _method_of_rows(self, configs: Sequence[DecodeConfig]) -> sampling.Method:
        """The method of slots with a config each."""
        return sampling.Method.of_rows(
            [config for config in configs for _ in range(self._shape.samples)]
        )

    def _admit(self, places: list[int], jobs: list[SlotJob]) -> None:
        """Prefill these jobs into these slots."""
        shape = self._shape
        count = 1 << (len(jobs) - 1).bit_length()
        tokens = np.zeros((count, shape.streams, shape.width), np.int32)
        lengths = np.zeros((count, shape.streams), np.int32)
        last = np.zeros((count, shape.streams), np.int32)
        for number, job in enumerate(jobs):
            for stream, prefix in enumerate(job.request.prefixes):
                lengths[number, stream], last[number, stream] = len(prefix) - 1, prefix[-1]
                tokens[number, stream, : len(prefix) - 1] = prefix[:-1]
        slots = np.full(count, shape.slots, np.int32)
        slots[: len(jobs)] = places
        rows = self._rows_of(jobs, count)
        new = steps.New(
            tokens=jnp.asarray(tokens),
            lengths=jnp.asarray(lengths),
            last=jnp.asarray(last),
            slots=jnp.asarray(slots),
            rows=rows,
            drafts=self._drafts_of(jobs, count),
        )
        # The suffix is left out, so that one program serves all of its sizes.
        suffix = self._state.cache.suffix
        state = _with_suffix(self._state, ())
        begin, known = time.perf_counter(), steps.compiled_programs()
        with self._on_mesh():
            self._rows, state = steps.prefill(
                self._model, self._variables, self._rows, state, new, shape.samples
            )
        self._state = _with_suffix(state, suffix)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - begin
        if steps.compiled_programs() > known:
            self._meter.compile_seconds += seconds
        else:
            self._meter.prefilled(seconds, int(lengths.sum()))
        temperatures = np.asarray(rows.temperatures).reshape(count, shape.samples)
        for place, job, mine in zip(places, jobs, temperatures, strict=False):
            zeros, none = np.zeros(shape.samples), np.zeros(shape.samples, int)
            self._slots[place] = _Slot(job, [], none, zeros, none, mine)

    def _rows_of(self, jobs: list[SlotJob], count: int) -> steps.RowConstants:
        """The rows of `count` prompts, of which all but `jobs` are padding."""
        each = self._shape.samples
        total = count * each
        programs: list[grammar.Program] = [()] * total
        keys, temperatures = np.zeros((total, 2), np.uint32), np.ones(total, np.float32)
        contrasted = np.zeros(total, bool)
        scales = np.ones((total, self._shape.streams - 1), np.float32)
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
        return steps.RowConstants(
            grammar.compile_programs(programs, self._vocab, self._shape.capacity),
            *map(jnp.asarray, (keys, temperatures, contrasted, scales)),
        )

    def _drafts_of(self, jobs: list[SlotJob], count: int) -> Drafts:
        """What the samples of `count` prompts may emit, of which all but `jobs` are padding."""
        empty = Drafts.empty(count * self._shape.samples, *self._shape.drafts)
        if not empty.prompt:
            return empty
        ids = np.array(empty.ids).reshape(count, self._shape.samples, -1)
        for place, job in enumerate(jobs):
            prefix = job.request.prefix
            ids[place, :, empty.prompt - len(prefix) : empty.prompt] = prefix
        return dataclasses.replace(empty, ids=jnp.asarray(ids.reshape(empty.ids.shape)))

    def _advance(self, count: int) -> Bool[np.ndarray, " P"]:
        """Run a chunk and give each slot what its samples emitted; returns which slots are done."""
        window = self._pace.window
        self._make_room(count * window)
        begin, known = time.perf_counter(), steps.compiled_programs()
        greedy = all(_greedy(job.config) for job in self.jobs)
        call = (self._model, self._vocab, self._variables, self._method, greedy)
        with self._on_mesh():
            self._state, emitted, done, taken = steps.chunk(
                *call, self._rows, self._state, count, window
            )
        ids, logprobs, free = (
            np.asarray(x).reshape(count * window, self._shape.slots, -1)
            for x in (emitted.ids, emitted.logprobs, emitted.free)
        )
        seconds = time.perf_counter() - begin
        new = ids != self._vocab.pad
        for place, slot in enumerate(self._slots):
            if slot is not None:
                slot.ids.append(ids[:, place])
                slot.emitted = slot.emitted + new[:, place].sum(0)
                slot.logprobs += logprobs[:, place].sum(0)
                slot.sampled += free[:, place].sum(0)
        if steps.compiled_programs() > known:
            self._meter.compile_seconds += seconds
        else:
            self._meter.stepped(seconds, int(new.sum()), int(taken) * self._read_per_step())
        by_pass = new.reshape(count, window, -1).sum(1)
        self._meter.emitted_by(int((by_pass > 0).sum()), int(new.sum()))
        self._pace.saw(by_pass, window)
        return np.all(np.asarray(done).reshape(self._shape.slots, -1), axis=1)

    def _make_room(self, count: int) -> None:
        """Resize the suffix to what the next `count` tokens need."""
        emitted = max(int(slot.emitted.max()) for slot in self._slots if slot is not None)
        room = self._shape.room(emitted + count)
        if room != self._state.cache.suffix[0].keys.shape[2]:
            with self._on_mesh():
                self._state = steps.resized(self._state, room)

    def _read_per_step(self) -> int:
        """Bytes that a step reads: the weights, and keys and values at their padded lengths."""
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


def _greedy(config: DecodeConfig) -> bool:
    return config.temperature == 0 and config.temperature_range is None


def _with_suffix(state: steps.State, suffix: tuple[KeyValues, ...]) -> steps.State:
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, suffix=suffix))
