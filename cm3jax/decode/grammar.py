"""What may follow: a table-driven automaton that is advanced with every decoded row.

A *program* says what a row emits, slot by slot: codes of an image, a text up to its `<eoss>`,
ids that are known beforehand, a document whose segments the model chooses. Compiled, it is a table
with one state per column; a state says which id is forced or which kinds of ids may be sampled,
and where each kind leads. Nothing else can be emitted: no code inside a text, no text inside an
image, and no sentinel, whose first occurrence only training may place.
"""

import dataclasses
import enum
from collections.abc import Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import AnyArray, Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Codes:
    """Codes of an image, exactly as many as entries: None is sampled, an id is forced."""

    ids: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Words:
    """A text of at least one piece, and the `<eoss>` that ends it: at most `limit` ids in all."""

    limit: int


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Ids that are known beforehand, such as the sentinel that recalls the next span."""

    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """Texts and whole images with `<break>`s between, as the model likes, then `<eos>`.

    At most `limit` ids in all, at least 2. No image begins that would not fit with the `<eos>`.
    The last slot of a program.
    """

    limit: int


@dataclasses.dataclass(frozen=True)
class Free:
    """No grammar: anything but sentinels, until `<eos>` or `limit` ids. The last slot."""

    limit: int


Slot = Codes | Words | Fixed | Interleaved | Free
Program = tuple[Slot, ...]


class Kind(enum.IntEnum):
    """Kinds of ids; what is of no kind is never sampled."""

    NONE = 0
    IMAGE = 1
    TEXT = 2
    END = 3
    BREAK = 4
    EOS = 5


FREE = -1
"""In `GrammarTable.forced`: no id is forced, one is sampled."""
_ALWAYS = 1 << 30
_NEVER = -1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["until", "forced", "after", "lengths"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class GrammarTable:
    """Programs of a batch, one state per column; a row is done when its state is its length."""

    until: Int[AnyArray, "*B T kinds"]
    """A kind may be sampled in a state while the row has emitted at most this many ids."""
    forced: Int[AnyArray, "*B T"]
    """The id that must follow, or `FREE`."""
    after: Int[AnyArray, "*B T kinds"]
    """The next state, by the kind of the id that was emitted."""
    lengths: Int[AnyArray, "*B"]
    """States of each program."""


def steps(program: Program) -> int:
    """The most ids that a program emits."""
    return sum(len(s.ids) if isinstance(s, Codes | Fixed) else s.limit for s in program)


def columns(program: Program, vocab: Vocab) -> int:
    """States of a program; an interleaved document can have more states than it emits ids."""
    return int(_table(program, vocab.image_tokens).lengths)


def compile_programs(programs: Sequence[Program], vocab: Vocab, width: int) -> GrammarTable:
    """The table of these programs, padded to `width` states, on the host."""
    shape = (len(programs), width)
    until = np.full((*shape, len(Kind)), _NEVER, np.int32)
    forced, after = np.full(shape, FREE, np.int32), np.zeros((*shape, len(Kind)), np.int32)
    tables = [_table(program, vocab.image_tokens) for program in programs]
    for row, one in enumerate(tables):
        here = slice(int(one.lengths))
        until[row, here], forced[row, here], after[row, here] = one.until, one.forced, one.after
    lengths = np.asarray([one.lengths for one in tables], np.int32)
    return GrammarTable(until, forced, after, lengths)


@lru_cache(maxsize=256)
def _table(program: Program, image_tokens: int) -> GrammarTable:
    """The table of one program, without an axis of rows; prompts of a kind share theirs."""
    found = _compiled(program, image_tokens)
    until = np.full((len(found), len(Kind)), _NEVER, np.int32)
    after = np.zeros((len(found), len(Kind)), np.int32)
    for column, state in enumerate(found):
        after[column] = state.otherwise
        for kind, (last, target) in state.kinds.items():
            until[column, kind], after[column, kind] = last, target
    forced = np.asarray([state.forced for state in found], np.int32)
    return GrammarTable(until, forced, after, np.asarray(len(found), np.int32))


@dataclasses.dataclass(frozen=True)
class _State:
    """One state: for each kind that may follow, until when it may and which state it leads to."""

    kinds: dict[Kind, tuple[int, int]]
    otherwise: int
    """The next state after any other kind."""
    forced: int = FREE


def _compiled(program: Program, image_tokens: int) -> list[_State]:
    out: list[_State] = []
    for slot in program:
        first = len(out)
        if isinstance(slot, Words):
            out += _words(slot, first)
        elif isinstance(slot, Interleaved):
            out += _interleaved(slot, first, steps(program), image_tokens)
        elif isinstance(slot, Free):
            out.append(_free(first, steps(program)))
        else:
            out += [_given(id_, here + 1) for here, id_ in enumerate(slot.ids, first)]
    return out


def _given(id_: int | None, following: int) -> _State:
    if id_ is None:
        return _State({Kind.IMAGE: (_ALWAYS, following)}, following)
    return _State({}, following, id_)


def _words(slot: Words, first: int) -> list[_State]:
    """A state per id: the place in the table tells how many pieces are left."""
    end = first + slot.limit
    out = []
    for here in range(first, end):
        kinds = {Kind.TEXT: (_ALWAYS, here + 1), Kind.END: (_ALWAYS, end)}
        if here == first:  # Training drops empty spans, so a text never begins with its end.
            del kinds[Kind.END]
        if here == end - 1:
            del kinds[Kind.TEXT]
        out.append(_State(kinds, here + 1))
    return out


def _interleaved(slot: Interleaved, first: int, limit: int, codes: int) -> list[_State]:
    """A state where a segment begins, one inside texts, one per code that follows the first."""
    begin, inside = first, first + 1
    after_codes = first + 1 + codes
    end = after_codes + 1
    # Ids emitted before the one in question: an <eos>, or a <break>, a piece and an <eos>, fit.
    text, again = (limit - 2, inside), (limit - 3, begin)
    picture = (limit - codes - 1, after_codes if codes == 1 else inside + 1)
    close = {Kind.BREAK: again, Kind.EOS: (_ALWAYS, end)}
    return [
        _State({Kind.TEXT: text, Kind.IMAGE: picture}, end),
        _State({Kind.TEXT: text, **close}, end),
        *(_State({Kind.IMAGE: (_ALWAYS, here + 1)}, end) for here in range(first + 2, after_codes)),
        _State(close, end),
    ]


def _free(here: int, limit: int) -> _State:
    kinds = (Kind.IMAGE, Kind.TEXT, Kind.END, Kind.BREAK)
    return _State(
        dict.fromkeys(kinds, (limit - 2, here)) | {Kind.EOS: (_ALWAYS, here + 1)}, here + 1
    )


def cut_short(program: Program, ids: Int[np.ndarray, " T"], vocab: Vocab) -> bool:
    """Whether a text or a document in what a program emitted ended where its limit left nothing
    else to say."""
    table, state = _table(program, vocab.image_tokens), 0
    for emitted, kind in enumerate(_kinds(vocab)[ids].tolist()):
        able = np.flatnonzero(emitted <= table.until[state])
        if kind in (Kind.END, Kind.EOS) and able.tolist() == [kind]:
            return True
        state = int(table.after[state, kind])
    return False


def kinds(vocab: Vocab) -> Int[Array, " V"]:
    """The `Kind` of every id."""
    return jnp.asarray(_kinds(vocab))


@lru_cache(maxsize=8)
def _kinds(vocab: Vocab) -> Int[np.ndarray, " V"]:
    ids = np.arange(vocab.size)
    modality = vocab.modality(ids)
    out = np.where(modality == Modality.IMAGE, Kind.IMAGE, Kind.NONE)
    out = np.where(modality == Modality.TEXT, Kind.TEXT, out)
    for id_, kind in (
        (vocab.eoss, Kind.END),
        (vocab.break_, Kind.BREAK),
        (vocab.eos, Kind.EOS),
    ):
        out[id_] = kind
    return out.astype(np.int32)


def _at(columns: Int[AnyArray, "B T *kinds"], states: Int[Array, " B"]) -> Int[Array, " B *kinds"]:
    places = states.reshape(-1, *[1] * (columns.ndim - 1))
    return jnp.take_along_axis(columns, places, axis=1, mode="clip")[:, 0]


def permitted(
    table: GrammarTable,
    states: Int[Array, " B"],
    emitted: Int[Array, " B"],
    kinds: Int[Array, " V"],
) -> Bool[Array, "B V"]:
    """Which ids may be sampled in these states after `emitted` ids; none where an id is forced."""
    open_ = emitted[:, None] <= _at(table.until, states)
    bits = jnp.sum(open_ << jnp.arange(len(Kind)), axis=1)
    return (bits[:, None] >> kinds) & 1 == 1


def forced(table: GrammarTable, states: Int[Array, " B"]) -> Int[Array, " B"]:
    """The ids that must follow, `FREE` where one is sampled."""
    return _at(table.forced, states)


def advance(
    table: GrammarTable, states: Int[Array, " B"], tokens: Int[Array, " B"], kinds: Int[Array, " V"]
) -> Int[Array, " B"]:
    """The states after these ids; rows that are done stay so."""
    kind = jnp.take(kinds, tokens)[:, None]
    after = jnp.take_along_axis(_at(table.after, states), kind, axis=1)[:, 0]
    return jnp.where(states < table.lengths, after, states)
