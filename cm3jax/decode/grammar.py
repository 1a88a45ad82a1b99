"""What may follow: a table-driven automaton that runs beside every decoded row.

A *program* says what a row emits, slot by slot: codes of a picture, a text up to its `<eoss>`,
ids that are known beforehand. Compiled, it is a table with one state per token; a state says which
kinds of ids may be sampled or which id is forced, and where an `<eoss>` leads. Nothing else can be
emitted: no code inside a text, no text inside a picture, no break, and no sentinel, whose first
occurrence only training may place.
"""

import dataclasses
import enum
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.shapes import Array, Bool, Int
from cm3jax.vocab import Modality, Vocab


@dataclasses.dataclass(frozen=True)
class Codes:
    """Codes of a picture, exactly as many as entries: None is sampled, an id is forced."""

    ids: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Words:
    """A text of at least one piece, and the `<eoss>` that ends it: at most `limit` ids in all."""

    limit: int


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Ids that are known beforehand, such as the sentinel that recalls the next span."""

    ids: tuple[int, ...]


Program = tuple[Codes | Words | Fixed, ...]


class Kind(enum.IntFlag):
    """Kinds of ids, as bits: a state allows a set of them, an id is of one or of none."""

    NONE = 0
    IMAGE = 1
    TEXT = 2
    END = 4


FREE = -1
"""In `Table.forced`: sample."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["allowed", "forced", "after_end", "lengths"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Table:
    """Programs of a batch, one state per column; a row is done when its state is its length."""

    allowed: Int[Array, "B T"]
    """Kinds of ids that may be sampled, as bits."""
    forced: Int[Array, "B T"]
    """The id that must follow, or `FREE`."""
    after_end: Int[Array, "B T"]
    """The next state if `<eoss>` is emitted; after any other id it is the next column."""
    lengths: Int[Array, " B"]
    """States of each program."""


def steps(program: Program) -> int:
    """The most ids that a program emits."""
    return sum(slot.limit if isinstance(slot, Words) else len(slot.ids) for slot in program)


def compile_programs(programs: Sequence[Program], vocab: Vocab, width: int) -> Table:
    """The table of these programs, padded to `width` states."""
    columns = np.zeros((3, len(programs), width), np.int32)
    for row, program in enumerate(programs):
        states = _states(program, vocab)
        columns[:, row, : len(states)] = np.asarray(states, np.int32).reshape(-1, 3).T
    lengths = np.asarray([steps(program) for program in programs], np.int32)
    return Table(*map(jnp.asarray, columns), lengths=jnp.asarray(lengths))


def _states(program: Program, vocab: Vocab) -> list[tuple[int, int, int]]:
    """`allowed, forced, after_end` of every state."""
    states: list[tuple[int, int, int]] = []
    for slot in program:
        first = len(states)
        if isinstance(slot, Words):
            end = first + slot.limit
            # Training drops empty spans, so a text never begins with its end.
            states.append((Kind.TEXT, FREE, end))
            states += [(Kind.TEXT | Kind.END, FREE, end)] * (slot.limit - 2)
            states.append((Kind.END, vocab.eoss, end))
            continue
        for state, id_ in enumerate(slot.ids, first):
            forced = FREE if id_ is None else id_
            states.append((Kind.IMAGE if id_ is None else Kind.NONE, forced, state + 1))
    return states


def kinds(vocab: Vocab) -> Int[Array, " V"]:
    """The `Kind` of every id."""
    ids = np.arange(vocab.size)
    modality = vocab.modality(ids)
    out = np.where(modality == Modality.IMAGE, Kind.IMAGE, Kind.NONE)
    out = np.where(modality == Modality.TEXT, Kind.TEXT, out)
    return jnp.asarray(np.where(ids == vocab.eoss, Kind.END, out), jnp.int32)


def _at(columns: Int[Array, "B T"], states: Int[Array, " B"]) -> Int[Array, " B"]:
    return jnp.take_along_axis(columns, states[:, None], axis=1, mode="clip")[:, 0]


def permitted(
    table: Table, states: Int[Array, " B"], kinds: Int[Array, " V"]
) -> Bool[Array, "B V"]:
    """Which ids may be sampled in these states; none where an id is forced without a kind."""
    return (_at(table.allowed, states)[:, None] & kinds) != 0


def forced(table: Table, states: Int[Array, " B"]) -> Int[Array, " B"]:
    """The ids that must follow, `FREE` where one is sampled."""
    return _at(table.forced, states)


def advance(
    table: Table, states: Int[Array, " B"], tokens: Int[Array, " B"], eoss: int
) -> Int[Array, " B"]:
    """The states after these ids; rows that are done stay so."""
    after = jnp.where(tokens == eoss, _at(table.after_end, states), states + 1)
    return jnp.where(states < table.lengths, after, states)
