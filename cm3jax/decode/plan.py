"""Which samples are decoded side by side: requests become jobs, and jobs of one kind form a group.

A group goes through one set of slots. Lengths and numbers of slots are rounded up to a few sizes,
so that prompts within a bucket run the same programs.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

from cm3jax.config import DecodeConfig
from cm3jax.decode import grammar
from cm3jax.decode.request import Request
from cm3jax.sequence.vocab import Vocab

CHUNK = 16
"""Tokens that are decoded between two checks by the host."""

ROOM = 128
"""Tokens by which the room for emitted tokens grows at least: each size has a program."""


def bucket(length: int) -> int:
    """The size that a length is padded to: 16, 32, 48, 64, 96, 128, 192, …"""
    size = CHUNK
    while size < length:
        size *= 2
    fits_below = size > 2 * CHUNK and length <= size * 3 // 4
    return size * 3 // 4 if fits_below else size


@dataclasses.dataclass(frozen=True)
class SlotJob:
    """A request, and the samples of it that one slot makes."""

    index: int
    """Names the request to whoever asked."""
    request: Request
    first_sample: int
    samples: int
    config: DecodeConfig
    """How they are drawn."""
    seed: int


@dataclasses.dataclass(frozen=True)
class ProgramShape:
    """What programs are compiled for."""

    slots: int
    """P, a multiple of the shares that the mesh cuts rows into."""
    samples: int
    """G, at least each job's samples."""
    streams: int
    """W, the number of streams."""
    width: int
    """Room for a prompt."""
    capacity: int
    """Room for emitted tokens."""
    guesses: bool = False
    """Whether passes read guesses of what follows."""

    @property
    def drafts(self) -> tuple[int, int]:
        """How many ids of a prompt and of an answer guesses are made from; 0 without guesses."""
        return (self.width + 1, self.capacity) if self.guesses else (0, 0)

    def room(self, tokens: int) -> int:
        """Room for this many emitted tokens: a quarter of `capacity` after another, each of at
        least `ROOM` tokens, so that steps read little more than what is filled."""
        part = max(ROOM, self.capacity // 4)
        return min(-(-tokens // part) * part, self.capacity)

    def holds(self, other: "ProgramShape") -> bool:
        """Whether jobs of another shape fit into slots of this one."""
        same = (self.streams, self.samples, self.guesses)
        alike = same == (other.streams, other.samples, other.guesses)
        return alike and other.width <= self.width and other.capacity <= self.capacity


@dataclasses.dataclass(frozen=True)
class Group:
    """Jobs that go through the same slots."""

    jobs: deque[SlotJob]
    """Those that wait."""
    widest: ProgramShape
    """With the most slots that there may be."""
    shards: int

    @property
    def shape(self) -> ProgramShape:
        """With slots for the jobs that wait."""
        slots = slots_for(len(self.jobs), self.widest.slots)
        return dataclasses.replace(self.widest, slots=-(-slots // self.shards) * self.shards)


def slots_for(jobs: int, most: int) -> int:
    """How many slots a number of jobs gets, one of few numbers: each has a program.

    Of more jobs than slots, about as many are left for the last slots as for all others.
    """
    if jobs <= most:
        return min(1 << (jobs - 1).bit_length(), most)
    even, part = -(-jobs // -(-jobs // most)), -(-most // 16)
    return min(-(-even // part) * part, most)


def front_share(slots: Sequence[object | None]) -> int:
    """Which part of slots, the first eighth, quarter or half, holds all that are not empty: 8, 4 or
    2, else 1. Each part has a program."""
    used = 1 + max(place for place, slot in enumerate(slots) if slot is not None)
    return next((n for n in (8, 4, 2) if len(slots) % n == 0 and used <= len(slots) // n), 1)


@dataclasses.dataclass(frozen=True, order=True)
class SizeClass:
    """Requests that may share slots, as far as their sizes go."""

    streams: int
    capacity: int
    """Room for emitted tokens."""
    scale: int
    """The class of its prompts' lengths, which are within a factor of 4."""

    @classmethod
    def of(cls, request: Request, vocab: Vocab) -> "SizeClass":
        """The class of a request."""
        program = request.program
        capacity = bucket(max(grammar.steps(program), grammar.columns(program, vocab)))
        scale = bucket(request.longest).bit_length() // 2
        return cls(1 + len(request.guides), capacity, scale)

    def shape(self, slots: int, longest_prompt: int, guesses: bool) -> ProgramShape:
        """Slots of one sample each for every request of the class, whichever comes."""
        width = min(3 << (2 * self.scale - 1), longest_prompt)
        return ProgramShape(slots, 1, self.streams, width, self.capacity, guesses)


def plan_groups(
    requests: Sequence[Request],
    samples: int,
    config: DecodeConfig,
    seed: int,
    vocab: Vocab,
    longest_prompt: int,
    shards: int,
) -> Iterator[Group]:
    """Groups of one shape each, the widest first: prompts that differ much in length don't run
    side by side, except where a wider group has slots left (`Group.widest`, `ProgramShape.holds`).

    No prompt is given more room than `longest_prompt`, the model's limit.
    """
    jobs: dict[tuple[SizeClass, int], list[SlotJob]] = {}
    for index, request in enumerate(requests):
        kind = SizeClass.of(request, vocab)
        most = max(1, config.batch // kind.streams)
        size = -(-samples // -(-samples // most))
        for first in range(0, samples, size):
            count = min(size, samples - first)
            job = SlotJob(index, request, first, count, config, seed)
            jobs.setdefault((kind, size), []).append(job)
    for (kind, size), members in sorted(jobs.items(), key=lambda item: item[0], reverse=True):
        streams = kind.streams
        slots = max(1, config.batch // (size * streams))
        longest = max(job.request.longest for job in members)
        # Beyond the limit there are no positions, not even for padding.
        width = min(bucket(longest - 1), longest_prompt)
        shape = (slots, size, streams, width, kind.capacity, config.guesses)
        yield Group(deque(members), ProgramShape(*shape), shards)
