"""The decoding loop: prompts are prefilled into slots, then compiled chunks of one step run.

Between two chunks the host takes away slots whose samples are done and admits waiting prompts in
their place. Where the parameters are on a mesh, slots are sharded over it like the rows of a batch.
"""

import dataclasses
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np

from cm3jax import partition
from cm3jax.config import DecodeConfig
from cm3jax.decode import grammar, programs, sampling, steps
from cm3jax.decode.constants import drafts_of, row_constants
from cm3jax.decode.finished import Finished, Sample
from cm3jax.decode.pace import pace_of
from cm3jax.decode.params import bytes_per_step
from cm3jax.decode.plan import CHUNK, Group, ProgramShape, SlotJob, front_share, plan_groups
from cm3jax.decode.prefix_cache import Known, PrefixCache
from cm3jax.decode.request import Request, require_fit
from cm3jax.decode.throughput import Meter
from cm3jax.model.cache import NONE, KeyValues
from cm3jax.model.language_model import LanguageModel
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Bool, Float, Int

ADMITTED = 8
"""Prompts that are prefilled at once, at most."""

Watch = Callable[[int, int, Int[np.ndarray, " T"]], None]
"""Gets request, sample and the ids that it has emitted so far, after every chunk."""


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
    prefixes: PrefixCache | None = None,
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
    groups = deque(plan_groups(*asked))
    while groups:
        group = groups.popleft()
        if not group.jobs:
            continue
        slots = Slots(model, variables, vocab, group.shape, config, meter or Meter(), prefixes)
        others = [other for other in groups if group.widest.holds(other.widest)]
        yield from _run(slots, group, others, watch)


def _run(
    slots: "Slots", group: Group, others: Sequence[Group], watch: Watch | None
) -> Iterator[list[Finished]]:
    """Work until no job of the group is left; slots that it leaves go to jobs of `others`."""
    own = {(job.index, job.first_sample) for job in group.jobs}
    while group.jobs or slots.jobs:
        runs = bool(group.jobs) or any((job.index, job.first_sample) in own for job in slots.jobs)
        sources = [group.jobs, *(other.jobs for other in others if runs)]
        waiting = itertools.chain.from_iterable(map(_emptied, sources))
        slots.admit(list(itertools.islice(waiting, slots.free)))
        finished = slots.advance(watch)
        if finished:
            yield finished


def _emptied(jobs: deque[SlotJob]) -> Iterator[SlotJob]:
    while jobs:
        yield jobs.popleft()


def shards_of(mesh: jax.sharding.Mesh | None) -> int:
    """The pieces that rows are cut into: slots are a multiple of them."""
    return partition.batch_shards(mesh) if mesh else 1


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
    (the tree of `sampling.Method.of`): `config` is any of theirs. With `narrows`, a chunk runs only
    a half, a quarter or an eighth of the slots where the others are empty, by a program each.
    """

    def __init__(
        self,
        model: LanguageModel,
        variables: dict,
        vocab: Vocab,
        shape: ProgramShape,
        config: DecodeConfig,
        meter: Meter,
        prefixes: PrefixCache | None = None,
        narrows: bool = False,
    ):
        self._model, self._variables, self._meter = model, variables, meter
        # Programs are compiled per vocabulary, but tokenizers do not matter to them.
        self._vocab, self._mesh = Vocab(vocab.config), partition.mesh_of(variables)
        self._shape, self._config, self._narrows = shape, config, narrows and self._mesh is None
        # On a mesh, each prefix is on the devices of its slot.
        self._prefixes = prefixes if self._mesh is None else None
        self._method = self._method_of_rows([config] * shape.slots)
        self._slots: list[_Slot | None] = [None] * shape.slots
        self._weights = bytes_per_step(variables)
        self._chunk_seconds = 0.0
        """How long `CHUNK` passes took of late."""
        # An empty slot has programs without states, so its samples count as done.
        rows = row_constants([], shape.slots, shape, self._vocab)
        with self._on_mesh():
            cut = None if self._mesh is None else partition.batch_sharding(self._mesh)
            self._rows = jax.device_put(rows, cut)
            method = jax.tree.structure(self._method)
            program = (model, self._mesh, shape, method, config.greedy)
            shared = partition.processes(self._mesh) > 1
            self._pace = pace_of(config.speculate, program, self._trial, shared)
            if not self._pace.ever_guesses:  # the programs of those who never guess
                self._shape = dataclasses.replace(shape, guesses=False)
            self._state = steps.start(model.config, self._shape, shape.room(CHUNK))

    def _trial(self, window: int) -> float:
        """Seconds of a pass, in a chunk of samples that draw codes without end."""
        shape = self._shape
        codes = (grammar.Codes((None,) * shape.capacity),)
        drawing = [codes] * (shape.slots * shape.samples)
        table = grammar.compile_programs(drawing, self._vocab, shape.capacity)
        rows = dataclasses.replace(self._rows, table=jax.device_put(table))
        state = steps.start(self._model.config, shape, shape.room(CHUNK * window))
        call = (self._model, self._vocab, self._variables, self._method, self._config.greedy)
        jax.block_until_ready((rows, state))  # what makes them is no part of a pass
        begin = time.perf_counter()
        passes = int(steps.chunk(*call, rows, state, CHUNK, window)[-1])
        seconds = time.perf_counter() - begin
        self._compiled(seconds)
        return seconds / passes

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

    @property
    def pause(self) -> float:
        """How many ids of prompts join in the time of a whole chunk: more would keep samples that
        run waiting. Without end where none runs, and before anything was timed."""
        meter = self._meter
        if not (self.jobs and self._chunk_seconds and meter.joined_tokens):
            return math.inf
        return self._chunk_seconds * meter.joined_tokens / meter.prefill_seconds

    def admit(self, jobs: Sequence[SlotJob]) -> None:
        """Prefill these jobs, at most `free`, into slots."""
        places = [place for place, slot in enumerate(self._slots) if slot is None]
        for first in range(0, len(jobs), ADMITTED):
            part = jobs[first : first + ADMITTED]
            seats = [
                (place, job, self._known(job))
                for place, job in zip(places[first:], part, strict=False)
            ]
            for there in (False, True):
                if chosen := [seat for seat in seats if bool(seat[2]) == there]:
                    self._admit(*map(list, zip(*chosen, strict=True)))
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

    def _known(self, job: SlotJob) -> list[Known]:
        """What the cache of prefixes has for each stream of a job; nothing unless for all."""
        if self._prefixes is None:
            return []
        known = self._prefixes.find_all(job.request, self._model.reads_forward)
        asked = sum(len(prefix) - 1 for prefix in job.request.prefixes)
        self._meter.sought(asked, sum(one.length for one in known))
        return known

    def _admit(self, places: list[int], jobs: list[SlotJob], known: list[list[Known]]) -> None:
        """Bring these jobs into these slots; none is known and they are read, or all are."""
        shape = self._shape
        new = self._joining(places, jobs, 0 if known[0] else shape.width)
        # The suffix is left out, so that one program serves all of its sizes.
        suffix = self._state.cache.suffix
        state = _with_suffix(self._state, ())
        begin, compiled = time.perf_counter(), programs.kept_programs()
        with self._on_mesh():
            self._rows, state = steps.prefill(
                self._model, self._variables, self._rows, state, new, shape.samples
            )
        self._state = self._with_prefixes(_with_suffix(state, suffix), places, jobs, known)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - begin
        if programs.kept_programs() > compiled:
            self._compiled(seconds)
        else:
            there = sum(one.length for each in known for one in each)
            self._meter.prefilled(seconds, int(new.lengths.sum()) - there, there)
        temperatures = new.rows.temperatures.reshape(-1, shape.samples)
        for place, job, mine in zip(places, jobs, temperatures, strict=False):
            zeros, none = np.zeros(shape.samples), np.zeros(shape.samples, int)
            self._slots[place] = _Slot(job, [], none, zeros, none, mine)

    def _joining(self, places: list[int], jobs: list[SlotJob], width: int) -> steps.New:
        """What these slots begin with, padded to a power of 2; tokens of prompts if they are read,
        `width` of each."""
        shape = self._shape
        count = 1 << (len(jobs) - 1).bit_length()
        tokens = np.zeros((count, shape.streams, width), np.int32)
        lengths, newest, last = np.zeros((3, count, shape.streams), np.int32)
        for number, job in enumerate(jobs):
            for stream, prefix in enumerate(job.request.prefixes):
                lengths[number, stream], last[number, stream] = len(prefix) - 1, prefix[-1]
                newest[number, stream] = prefix[-2] if len(prefix) > 1 else NONE
                if width:
                    tokens[number, stream, : len(prefix) - 1] = prefix[:-1]
        slots = np.full(count, shape.slots, np.int32)
        slots[: len(jobs)] = places
        rows = row_constants(jobs, count, shape, self._vocab)
        drafts = drafts_of(jobs, count, shape)
        return steps.New(tokens, lengths, newest, last, slots, rows, drafts)

    def _with_prefixes(
        self, state: steps.State, places: list[int], jobs: list[SlotJob], known: list[list[Known]]
    ) -> steps.State:
        """The state with the prefixes that are known, or new ones taken out of it to be kept."""
        if self._prefixes is None:
            return state
        layers, reader = state.cache.prefix, (self._model, self._variables)
        for place, job, found in zip(places, jobs, known, strict=True):
            first = place * self._shape.streams
            layers = self._prefixes.exchange(*reader, layers, first, job.request, found)
        return dataclasses.replace(state, cache=dataclasses.replace(state.cache, prefix=layers))

    def _advance(self, count: int) -> Bool[np.ndarray, " P"]:
        """Run a chunk and give each slot what its samples emitted; returns which slots are done."""
        window = self._pace.window
        self._make_room(count * window)
        begin, compiled = time.perf_counter(), programs.kept_programs()
        greedy = all(job.config.greedy for job in self.jobs)
        call = (self._model, self._vocab, self._variables, self._method, greedy)
        share = front_share(self._slots) if self._narrows else 1
        run = (self._rows, self._state, count, window, share)
        with self._on_mesh():
            self._state, emitted, done, taken = steps.chunk(*call, *run)
        sizes = (count * window, -1, self._shape.samples)
        ids, logprobs, free = (np.asarray(x).reshape(sizes) for x in jax.tree.leaves(emitted))
        seconds = time.perf_counter() - begin
        new = ids != self._vocab.pad
        counts, sums, sampled = new.sum(0), logprobs.sum(0, dtype=np.float64), free.sum(0)
        for place, slot in enumerate(self._slots[: len(counts)]):
            if slot is not None:
                slot.ids.append(ids[:, place])
                slot.emitted = slot.emitted + counts[place]
                slot.logprobs += sums[place]
                slot.sampled += sampled[place]
        if programs.kept_programs() > compiled:
            self._compiled(seconds)
        else:
            self._meter.stepped(seconds, int(new.sum()), int(taken) * self._read_per_step(share))
            self._chunk_seconds = seconds * CHUNK / count
        by_pass = new.reshape(count, window, -1).sum(1)
        self._meter.emitted_by(int((by_pass > 0).sum()), int(new.sum()))
        self._meter.occupied(int(new.any(0).sum()), new[0].size)
        self._pace.saw(by_pass, window)
        return np.all(np.asarray(done).reshape(-1, self._shape.samples), axis=1)

    def _compiled(self, seconds: float) -> None:
        """Count what compiling a program took, and make room for the next."""
        self._meter.compile_seconds += seconds
        programs.forget_if_many()

    def _make_room(self, count: int) -> None:
        """Resize the suffix to what the next `count` tokens need."""
        emitted = max(int(slot.emitted.max()) for slot in self._slots if slot is not None)
        room = self._shape.room(emitted + count)
        if room != self._state.cache.suffix[0].keys.shape[2]:
            with self._on_mesh():
                self._state = steps.resized(self._state, room)

    def _read_per_step(self, share: int) -> int:
        """Bytes that a step reads: the weights, and keys and values at their padded lengths."""
        cache = self._state.cache
        parts = (*jax.tree.leaves(cache.prefix), *jax.tree.leaves(cache.suffix))
        return self._weights + sum(part.nbytes for part in parts) // share

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


def _with_suffix(state: steps.State, suffix: tuple[KeyValues, ...]) -> steps.State:
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, suffix=suffix))
