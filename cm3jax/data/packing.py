"""The plan of rows: which samples stand where, for all processes, from lengths alone.

An epoch is a random order of the records, cut into blocks; each block is planned by itself. The
plan needs no tokens, so every process makes the same one and then reads only its own rows.
"""

import bisect
import dataclasses
import functools

import numpy as np

from cm3jax import draws
from cm3jax.config import CM3Config
from cm3jax.draws import Stream
from cm3jax.masks import mask_counts
from cm3jax.retrieval.select import NONE, draw
from cm3jax.sequence import Places, fit, reserved, without_documents
from cm3jax.shapes import Float, Int

BLOCK = 4096
"""Records that are packed together. Part of what a data position means: never changed in a run."""


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of a corpus without reading a document."""

    lengths: Int[np.ndarray, " M"]
    """Ids of every record."""
    neighbours: Int[np.ndarray, "M W Q C"]
    """Bank rows of its candidates, by view and query modality; -1 for none."""
    scores: Float[np.ndarray, "M W Q C"]
    """The scores they were chosen with."""
    bank_lengths: Int[np.ndarray, " K"]
    """Ids of every document of the bank."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The samples of some rows, ordered by row."""

    records: Int[np.ndarray, " samples"]
    epochs: Int[np.ndarray, " samples"]
    documents: Int[np.ndarray, "samples R"]
    """Bank rows of the documents shown; -1 for none."""
    masks: Int[np.ndarray, " samples"]
    """Masks to draw."""
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
        fields = (self.records, self.epochs, self.documents, self.masks)
        return Plan(*(field[part] for field in fields), places, stop - start, self.dropped)


def join(plans: list[Plan]) -> Plan:
    """The rows of several plans, one after another."""
    first = np.cumsum([0, *(plan.rows for plan in plans)])
    places = [plan.places for plan in plans]
    rows = [place.rows + np.int32(start) for place, start in zip(places, first, strict=False)]
    return Plan(
        *(
            np.concatenate([getattr(plan, name) for plan in plans])
            for name in ("records", "epochs", "documents", "masks")
        ),
        Places(
            np.concatenate(rows),
            np.concatenate([place.offsets for place in places]),
            np.concatenate([place.segments for place in places]),
        ),
        rows=int(first[-1]),
        dropped=sum(plan.dropped for plan in plans),
    )


def pack(lengths: Int[np.ndarray, " samples"], room: int) -> Places:
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


epoch_order = functools.lru_cache(maxsize=4)(draws.permutation)
"""`epoch_order(seed, epoch, records)`: an epoch's order, which all of its blocks need."""


def plan_block(
    table: Table, seed: int, epoch: int, block: int, room: int, documents: int, config: CM3Config
) -> Plan:
    """The rows of one block of one epoch: `room` tokens each, up to `documents` per sample.

    Which documents and how many masks a sample gets, and the order of rows, are draws of the
    (seed, epoch, record) and (seed, epoch, block) alone. Records must fit a row without documents.
    """
    records = epoch_order(seed, epoch, len(table.lengths))[block * BLOCK : (block + 1) * BLOCK]
    drawn = draw(
        np, table.neighbours[records], table.scores[records], seed, epoch, records, documents
    )
    alone = without_documents(np, seed, epoch, records, config)
    ids = np.where(alone[:, None], NONE, drawn.ids)
    lengths = np.where(ids == NONE, 0, table.bank_lengths[ids]).astype(np.int32)
    queries = table.lengths[records].astype(np.int32)
    masks = mask_counts(np, seed, epoch, records, config)
    fitted = fit(np, lengths, drawn.scores, queries, masks, room)
    places = pack(reserved(np, fitted.document_lengths, queries, fitted.masks), room)

    rows = int(places.rows.max()) + 1
    shuffled = draws.permutation(seed, epoch, rows, Stream.ROWS, first=block * BLOCK)
    rows_of = shuffled.astype(np.int32)[places.rows]
    by_row = np.lexsort((places.offsets, rows_of))
    return Plan(
        records[by_row],
        np.full(len(records), epoch),
        np.where(fitted.document_lengths > 0, ids, NONE)[by_row],
        fitted.masks[by_row],
        Places(rows_of[by_row], places.offsets[by_row], places.segments[by_row]),
        rows,
        int(((lengths > 0) & (fitted.document_lengths == 0)).sum()),
    )
