"""Kinds of requests, and the sets of slots that they are drawn in: a bounded number at once.

Requests of one size class (`decode.plan.SizeClass`) that sample with the same filters are of one
kind, and share a *pool* of slots: a sample joins between two chunks as soon as a slot is free,
whatever its prompt, seed, temperature, guidance scale, `top_k` or `top_p`. Within a pool requests
take turns, a sample each, so that one of many samples does not keep others waiting. A chunk costs
less than two of half as many samples: while a pool draws for its own kind and has slots to spare,
requests of narrower classes are drawn there, too, as its guests.

Slots take memory, which is bounded, however various the requests are. A kind that comes when there
are `most` sets gets the place of an idle one, the one opened first; where all are at work, the set
opened first takes no more samples, and gives up its place when those in it are done. What waited
for it goes to the end of the line.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode import loop
from cm3jax.decode.plan import CHUNK, ProgramShape, SizeClass, SlotJob
from cm3jax.decode.sampling import Method
from cm3jax.decode.throughput import Meter
from cm3jax.generation.generator import Generator
from cm3jax.serve.drawing import Drawing
from cm3jax.shapes import Int


class Pool:
    """The drawings of one kind, and their slots once there was a turn."""

    def __init__(self, open_slots: Callable[[], loop.Slots]):
        self._open_slots = open_slots
        self._slots: loop.Slots | None = None
        self.drawings: dict[int, Drawing] = {}
        self._waiting: deque[tuple[Drawing, int]] = deque()
        self.admits = True
        """Whether waiting samples get free slots."""
        self.passes = CHUNK
        """How many the last chunk ran."""

    def add(self, drawing: Drawing) -> None:
        """Let a drawing wait for slots."""
        self.drawings[drawing.number] = drawing
        self._waiting.append((drawing, 0))

    @property
    def hosts(self) -> bool:
        """Whether it draws for its own kind, so that others may join."""
        return self.admits and any(not drawing.guest for drawing in self.drawings.values())

    def drop(self, drawing: Drawing) -> None:
        """Forget a drawing; its slots are free."""
        del self.drawings[drawing.number]
        self._waiting = deque(each for each in self._waiting if each[0] is not drawing)
        if self._slots is not None:
            self._slots.drop(drawing.number)

    def step(self, row: int) -> list[loop.Finished]:
        """Fill free slots and run a chunk, of `row` passes where somebody looks at each row of a
        sample that runs."""
        slots = self._slots = self._slots or self._open_slots()
        slots.admit(self._joining(slots) if self.admits else [])
        watched = any(self.drawings[job.index].asked.rows for job in slots.jobs)
        self.passes = min(row, CHUNK) if watched else CHUNK
        return slots.advance(self._watch, self.passes)

    def close(self) -> None:
        """Give up the slots, which are empty; the next step opens others."""
        self._slots = None

    @property
    def ready(self) -> bool:
        """Whether a chunk would draw something."""
        return bool(self.busy or (self.admits and self.waiting))

    @property
    def busy(self) -> int:
        """Slots that decode a sample."""
        slots = self._slots
        return 0 if slots is None else len(slots.jobs)

    @property
    def waiting(self) -> int:
        """Samples without a slot."""
        # Others count too, while the engine's thread changes the queue: a copy is made at once.
        return sum(drawing.asked.samples - first for drawing, first in tuple(self._waiting))

    def _joining(self, slots: loop.Slots) -> list[SlotJob]:
        """Samples that join now: those with a slot whose prompts are read in the time of a chunk,
        so that no sample that runs is kept longer; at least one."""
        jobs: list[SlotJob] = []
        left = slots.pause
        while self._waiting and len(jobs) < slots.free:
            left -= sum(map(len, self._waiting[0][0].asked.request.prefixes))
            if jobs and left < 0:
                break
            jobs.append(self._next())
        return jobs

    def _next(self) -> SlotJob:
        drawing, sample = self._waiting.popleft()
        if sample + 1 < drawing.asked.samples:
            self._waiting.append((drawing, sample + 1))
        asked = drawing.asked
        return SlotJob(drawing.number, asked.request, sample, 1, asked.config, asked.seed)

    def _watch(self, number: int, sample: int, ids: Int[np.ndarray, " T"]) -> None:
        self.drawings[number].emitted[sample] = ids


class Pools:
    """The pools of all drawings; at most `most` of them have slots, `slots` each."""

    def __init__(self, generator: Generator, slots: int, most: int, meter: Meter):
        self._generator, self._meter = generator, meter
        self._slots, self._most = slots, most
        self._placed: dict[tuple, Pool] = {}
        """Those that may have slots, the oldest first."""
        self._line: dict[tuple, Pool] = {}
        """Those that wait for a place."""

    def __iter__(self) -> Iterator[Pool]:
        # Others look, while the engine's thread changes them: copies are made at once.
        return itertools.chain(list(self._placed.values()), list(self._line.values()))

    @property
    def active(self) -> bool:
        """Whether there is something to draw."""
        return any(pool.drawings for pool in self)

    def add(self, drawing: Drawing) -> None:
        """Put a drawing into the pool of its kind, or of a wider one that has slots to spare."""
        config = drawing.asked.config
        size = SizeClass.of(drawing.asked.request, self._generator.vocab)
        kind = (size, jax.tree.structure(Method.of(config)))
        host = self._host(kind, drawing)
        if host is not None:
            drawing.guest = host != kind
            self._placed[host].add(drawing)
            return
        pool = self._placed.get(kind) or self._line.get(kind)
        if pool is None:
            shape = self._shape(size, config)
            opens = functools.partial(self._generator.open_slots, shape, config, self._meter)
            pool = self._line[kind] = Pool(opens)
        pool.add(drawing)

    def _shape(self, size: SizeClass, config: DecodeConfig) -> ProgramShape:
        return size.shape(self._slots, self._generator.model.longest_prompt, config.guesses)

    def _host(self, kind: tuple, drawing: Drawing) -> tuple | None:
        """The widest kind that has slots to spare for a drawing while it draws for its own."""
        (size, method), config = kind, drawing.asked.config
        shape = self._shape(size, config)
        able = [
            (wide, other)
            for (wide, other), pool in self._placed.items()
            if other == method
            and pool.hosts
            and wide.scale <= size.scale + 1  # prompts are read at the width of their slots
            and self._shape(wide, config).holds(shape)
            and pool.busy + pool.waiting + drawing.asked.samples <= self._slots
        ]
        return max(able, key=lambda each: each[0], default=None)

    def drop(self, drawing: Drawing) -> None:
        """Forget a drawing, if a pool has it."""
        for pool in self:
            if drawing.number in pool.drawings:
                pool.drop(drawing)

    def lose(self, pool: Pool) -> None:
        """Take away a pool whose slots failed."""
        self._placed = {kind: each for kind, each in self._placed.items() if each is not pool}

    def clear(self) -> None:
        """Forget everything."""
        self._placed, self._line = {}, {}

    def turns(self) -> list[Pool]:
        """The pools whose turn a chunk is; those in line have got what place there is."""
        self._line = {kind: pool for kind, pool in self._line.items() if pool.drawings}
        before = list(self._placed)
        while self._line and (len(self._placed) < self._most or self._make_place(before)):
            kind = next(iter(self._line))
            self._placed[kind] = self._line.pop(kind)
        for place, (kind, pool) in enumerate(self._placed.items()):
            # One that has just come draws something before it goes.
            pool.admits = place > 0 or not self._line or kind not in before
        return [pool for pool in self._placed.values() if pool.ready]

    def _make_place(self, before: list[tuple]) -> bool:
        """Close the oldest idle one of the pools that had a place `before`, or else the oldest if
        its samples are done, which puts it at the end of the line; whether there was one."""
        idle = [kind for kind in before if not self._placed[kind].drawings]
        free = [kind for kind in before[:1] if not self._placed[kind].busy]
        if not idle and not free:
            return False
        kind = (idle or free)[0]
        before.remove(kind)  # it may come back at once, as one that is new
        pool = self._placed.pop(kind)
        pool.close()
        if pool.drawings:
            self._line[kind] = pool
        return True
