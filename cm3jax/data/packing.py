"""The plan of rows: which samples share which row, for all processes, from lengths only.

An epoch is a random order of the records, cut into blocks; each block is planned by itself. The
plan needs no tokens, so every process makes the same one and then reads only its own rows.

A row holds `whole` samples, or is cut out of the block's `stream` of samples; of the latter only
the block's last row is not full.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cm3jax.config import CM3Config
from cm3jax.retrieval.select import NONE, Drawn, draw_documents, shuffled, with_wrong
from cm3jax.sequence import prng
from cm3jax.sequence.fit import answer_masks, documents_shown, fit_samples, reserved
from cm3jax.sequence.prng import PrngStream
from cm3jax.sequence.rows import Places
from cm3jax.sequence.spans import mask_counts
from cm3jax.shapes import Bool, Float, Int

ELSEWHERE = (
    "Give the data that it was trained on, or another --workdir, or begin the epoch again by "
    "--resume-with-changes."
)
"""What to do about a data position that does not fit the data."""

OWN = -2
"""In place of a document's row in the bank: the record itself."""

BLOCK = 4096
"""Records that are packed together. Part of what a data position means: never changed in a run."""


@dataclasses.dataclass(frozen=True)
class Position:
    """The next row that a stream gives: the data position of a checkpoint."""

    epoch: int = 0
    """Passes over the records that are complete."""
    block: int = 0
    """Blocks of this epoch that are complete; streams without blocks stay at 0."""
    row: int = 0
    """Rows (or records) of this block that were given; of a mixture, all rows that were given."""
    parts: tuple["Position", ...] = ()
    """In a mixture that has begun: the position in each of its corpora."""

    @property
    def place(self) -> str:
        """The position in words."""
        parts = [f"part {n} at {part.place}" for n, part in enumerate(self.parts, 1)]
        return ", ".join([f"row {self.row} of block {self.block} of epoch {self.epoch}", *parts])

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Position":
        """The inverse of `dataclasses.asdict`, through JSON."""
        parts = tuple(cls.from_json(part) for part in values.get("parts", ()))
        return cls(**values | {"parts": parts})


@dataclasses.dataclass(frozen=True, eq=False)
class LengthTable:
    """What is known of a corpus without reading a document."""

    lengths: Int[np.ndarray, " M"]
    """Ids of every record."""
    neighbours: Int[np.ndarray, "M W Q C"]
    """Bank rows of its candidates, by view and query modality; -1 for none."""
    scores: Float[np.ndarray, "M W Q C"]
    """The scores they were chosen with."""
    bank_lengths: Int[np.ndarray, " K"]
    """Ids of every document of the bank."""
    answers: Int[np.ndarray, "M 3"] | None = None
    """Where each record's answer is, if they have one (`cm3jax.tasks.example.Answer`)."""
    own: Callable[[Int[np.ndarray, " B"], Int[np.ndarray, " B"]], Bool[np.ndarray, " B"]] | None = (
        None
    )
    """Which of some records would be shown themselves, or their own image, by a document of the
    bank each; None without a bank."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The samples of some rows, ordered by row; one that stream rows cut is in each of them."""

    records: Int[np.ndarray, " samples"]
    keys: Int[np.ndarray, " samples"]
    """What masks are drawn for: the record or, in stream rows, the row."""
    epochs: Int[np.ndarray, " samples"]
    documents: Int[np.ndarray, "samples R"]
    """Bank rows of the documents shown; -1 for none, `OWN` for the record itself."""
    masks: Int[np.ndarray, " samples"]
    """Masks to draw: the sample's or, in stream rows, the row's."""
    places: Places
    rows: int
    """How many rows there are."""
    dropped: int
    """Documents that did not fit."""

    def slice(self, start: int, stop: int) -> "Plan":
        """Rows `start .. stop - 1`, numbered from 0."""
        low, high = np.searchsorted(self.places.rows, (start, stop))
        part = slice(low, high)
        places = Places(
            self.places.rows[part] - np.int32(start),
            self.places.offsets[part],
            self.places.segments[part],
        )
        fields = {name: getattr(self, name)[part] for name in _BY_SAMPLE}
        return dataclasses.replace(self, **fields, places=places, rows=stop - start)


_BY_SAMPLE = ("records", "keys", "epochs", "documents", "masks")


def join_plans(plans: list[Plan]) -> Plan:
    """The rows of several plans, one after another."""
    if len(plans) == 1:
        return plans[0]
    first = np.cumsum([0, *(plan.rows for plan in plans)])
    places = [plan.places for plan in plans]
    rows = [place.rows + np.int32(start) for place, start in zip(places, first, strict=False)]
    return Plan(
        **{name: np.concatenate([getattr(p, name) for p in plans]) for name in _BY_SAMPLE},
        places=Places(
            np.concatenate(rows),
            np.concatenate([place.offsets for place in places]),
            np.concatenate([place.segments for place in places]),
        ),
        rows=int(first[-1]),
        dropped=sum(plan.dropped for plan in plans),
    )


def pack_rows(lengths: Int[np.ndarray, " samples"], room: int) -> Places:
    """Best fit, longest first: each sample goes to the fullest row that can hold it, or a new one.

    Every length must be at most `room`.
    """
    places = np.zeros((3, len(lengths)), np.int32)
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    held: list[int] = []  # samples of each row
    for sample in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[sample])
        best = bisect.bisect_left(free, (need, -1))
        if best < len(free):
            left, row = free.pop(best)
        else:
            left, row = room, len(held)
            held.append(0)
        held[row] += 1
        places[:, sample] = row, room - left, held[row]
        bisect.insort(free, (left - need, row))
    return Places(*places)


epoch_order = functools.lru_cache(maxsize=4)(prng.permutation)
"""`epoch_order(seed, epoch, records)`: an epoch's order, which all of its blocks need."""


def plan_block(
    table: LengthTable,
    seed: int,
    epoch: int,
    block: int,
    room: int,
    documents: int,
    config: CM3Config,
) -> Plan:
    """The whole-sample rows of one block of one epoch: `room` tokens each, up to `documents` per
    sample.

    The documents and the number of masks of a sample depend only on (seed, epoch, record), the
    order of rows only on (seed, epoch, block). Records must fit a row without documents.
    """
    shown = _shown(table, seed, epoch, block, documents, config)
    masks = mask_counts(np, seed, epoch, shown.records, config)
    if table.answers is not None:
        masks = answer_masks(table.answers[shown.records])
    fitted = fit_samples(np, shown.lengths, shown.scores, shown.queries, masks, room)
    places = pack_rows(reserved(np, fitted.document_lengths, shown.queries, fitted.masks), room)

    rows = int(places.rows.max()) + 1
    shuffled = prng.permutation(seed, epoch, rows, PrngStream.ROWS, first=block * BLOCK)
    rows_of = shuffled.astype(np.int32)[places.rows]
    by_row = np.lexsort((places.offsets, rows_of))
    records = shown.records[by_row]
    return Plan(
        records,
        records,
        np.full(len(records), epoch),
        np.where(fitted.document_lengths > 0, shown.ids, NONE)[by_row],
        np.asarray(fitted.masks[by_row]),
        Places(rows_of[by_row], places.offsets[by_row], places.segments[by_row]),
        rows,
        int(((shown.lengths > 0) & (fitted.document_lengths == 0)).sum()),
    )


def plan_stream_block(
    table: LengthTable,
    seed: int,
    epoch: int,
    block: int,
    room: int,
    documents: int,
    config: CM3Config,
) -> Plan:
    """The rows of `room` tokens that the samples of one block, one after another, are cut into.

    A row's masks are drawn first, by (seed, epoch, row), at most as many as half of it has room
    for; the row is cut that much shorter. Documents are drawn as for whole samples; none is
    dropped.
    """
    shown = _shown(table, seed, epoch, block, documents, config)
    sizes = reserved(np, shown.lengths, shown.queries, 0 * shown.queries).astype(np.int64)
    stops = np.cumsum(sizes)
    most = min(config.max_masks, room // 6)
    # Unique within the epoch unless samples are longer than two rows.
    keys = 2 * BLOCK * block + np.arange(stops[-1] // (room - 3 * most) + 1)
    masks = np.minimum(mask_counts(np, seed, epoch, keys, config), most)
    cuts = np.cumsum(room - 3 * masks)  # where the rows end in the stream
    first = np.searchsorted(cuts, stops - sizes, side="right")
    last = np.searchsorted(cuts, stops - 1, side="right")
    rows = int(last[-1]) + 1

    pieces = last - first + 1
    sample = np.repeat(np.arange(len(sizes)), pieces)
    piece = np.arange(len(sample)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    row = first[sample] + piece
    shuffled = prng.permutation(seed, epoch, rows, PrngStream.ROWS, first=2 * BLOCK * block)
    by_row = np.argsort(shuffled[row], kind="stable")
    sample, row = sample[by_row], row[by_row]
    offsets = (stops - sizes)[sample] - np.concatenate([[0], cuts])[row]
    number = np.arange(len(row)) - np.searchsorted(shuffled[row], shuffled[row])
    return Plan(
        shown.records[sample],
        keys[row],
        np.full(len(sample), epoch),
        shown.ids[sample],
        masks[row].astype(np.int32),
        Places(
            shuffled[row].astype(np.int32),
            offsets.astype(np.int32),
            1 + number.astype(np.int32),
        ),
        rows,
        dropped=0,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Shown:
    """The records of a block, and the documents drawn for them."""

    records: Int[np.ndarray, " samples"]
    ids: Int[np.ndarray, "samples R"]
    """As `Plan.documents`."""
    scores: Float[np.ndarray, "samples R"]
    lengths: Int[np.ndarray, "samples R"]
    """Ids of the documents; 0 for none."""
    queries: Int[np.ndarray, " samples"]
    """Ids of the records."""


def _shown(
    table: LengthTable, seed: int, epoch: int, block: int, documents: int, config: CM3Config
):
    records = epoch_order(seed, epoch, len(table.lengths))[block * BLOCK : (block + 1) * BLOCK]
    drawn = _drawn(table, records, seed, epoch, documents)
    if config.wrong_documents and documents:
        words = prng.bits(np, seed, epoch, records, PrngStream.WRONG_DOCUMENTS, 2)
        others = np.asarray(prng.below(np, words[:, 1], len(table.lengths)), np.int64)
        wrong = _drawn(table, others, seed, epoch, 1).ids[:, 0]
        chosen = np.asarray(prng.chance(np, words[:, 0], config.wrong_documents))
        asked = np.flatnonzero(chosen & (wrong != NONE))
        if table.own is not None and len(asked):
            chosen[asked] = ~table.own(records[asked], wrong[asked])
        drawn = with_wrong(np, drawn, wrong, chosen)
    if config.own_documents and drawn.ids.shape[1]:
        words = prng.bits(np, seed, epoch, records, PrngStream.OWN_DOCUMENTS, 1)
        own = np.asarray(prng.chance(np, words, config.own_documents))
        itself = np.where(np.arange(drawn.ids.shape[1]) == 0, OWN, NONE)
        drawn = Drawn(np.where(own, itself, drawn.ids), drawn.scores)
    count = documents_shown(np, seed, epoch, records, documents, config)
    ids = np.where(np.arange(drawn.ids.shape[1]) < count[:, None], drawn.ids, NONE)
    if config.shuffle_documents:
        drawn = shuffled(np, Drawn(ids, drawn.scores), seed, epoch, records)
        ids = np.asarray(drawn.ids)
    queries = table.lengths[records].astype(np.int32)
    lengths = np.where(ids == NONE, 0, table.bank_lengths[np.maximum(ids, NONE)])
    lengths = np.where(ids == OWN, queries[:, None], lengths).astype(np.int32)
    return _Shown(records, ids, drawn.scores, lengths, queries)


def _drawn(
    table: LengthTable, records: Int[np.ndarray, " B"], seed: int, epoch: int, documents: int
):
    return draw_documents(
        np, table.neighbours[records], table.scores[records], seed, epoch, records, documents
    )
