"""Rows that show what documents are worth: held-out records behind none, retrieved, right or wrong.

A loss over all rows hides it: a model that learns its training images by heart has a falling
loss, and reads no document.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from cm3jax.data.cm3_rows import CorpusRows
from cm3jax.data.packing import Plan
from cm3jax.data.pipeline import HostBatch, Position
from cm3jax.retrieval.select import NONE
from cm3jax.sequence.fit import fit_samples
from cm3jax.sequence.rows import Places
from cm3jax.sequence.vocab import Modality
from cm3jax.shapes import Int

_RECORDS = 32
"""Records that are asked, at most, rounded up to whole batches."""
_LARGEST = 200_000
"""Documents of the largest bank that is searched for right ones, which reads all of it."""


@runtime_checkable
class Probed(Protocol):
    """A learner that asks at each validation what documents are worth."""

    def document_probes(self) -> Mapping[str, Sequence[HostBatch]]:
        """Batches by what is shown in front; the nats per code of each kind are logged as
        `documents_KIND`."""


def probes_of(learner: object) -> Mapping[str, Sequence[HostBatch]]:
    """The probes of a learner; none where it asks nothing."""
    return learner.document_probes() if isinstance(learner, Probed) else {}


def document_probes(rows: CorpusRows, batch: int, share: slice) -> dict[str, list[HostBatch]]:
    """One record a row, `batch` rows at a time, of which this process makes its `share`, by what
    is shown in front of them.

    That is `none`, `retrieved` documents (by the record's text), `wrong` ones (retrieved for a
    record of other subjects with another image) and, where the corpus names subjects, `right`
    ones (of the same subject). Nothing is masked, and documents have no weight, so that
    `loss_image` of a batch is the nats per code of the true images. Empty where records are shown
    no documents, or are cut.
    """
    whole = rows.config.rows == "whole" and rows.corpus.answers is None
    if rows.bank is None or not whole or not rows.config.documents:
        return {}
    records = _pictured(rows)
    if not records:
        return {}
    retrieved, subjects = _retrieved(rows, records), _subjects(rows, records)
    pictures = [frozenset(rows.corpus.document(record).pictures) for record in records]
    shown = {
        "none": np.full_like(retrieved, NONE),
        "retrieved": retrieved,
        "wrong": retrieved[_others(subjects, pictures)],
    }
    found = {kind: _batches(rows, records, ids, batch, share) for kind, ids in shown.items()}
    right = _right(rows, records, subjects)
    have = np.flatnonzero((right != NONE).any(1))
    if len(have):
        asked = [records[place] for place in have]
        found["right"] = _batches(rows, asked, right[have], batch, share)
    return found


def _pictured(rows: CorpusRows) -> list[int]:
    """The first records with an image, in the order of the first epoch."""
    vocab, found = rows.corpus.vocab, []
    for record in dict.fromkeys(rows.plan(0, 0).records.tolist()):
        if (vocab.modality(rows.corpus.ids(record)) == Modality.IMAGE).any():
            found.append(record)
        if len(found) == _RECORDS:
            break
    return found


def _retrieved(rows: CorpusRows, records: Sequence[int]) -> Int[np.ndarray, "B R"]:
    """The best candidates by the text of the clean view, as when an image is asked for."""
    most = rows.config.documents
    found = np.asarray(rows.corpus.neighbours[list(records), 0, 0, :most], np.int64)
    return np.pad(found, ((0, 0), (0, most - found.shape[1])), constant_values=NONE)


def _subjects(rows: CorpusRows, records: Sequence[int]) -> list[frozenset[str]]:
    return [frozenset(rows.corpus.document(record).subjects) for record in records]


def _others(subjects: Sequence[frozenset[str]], pictures: Sequence[frozenset[str]]) -> list[int]:
    """For each record the next one that shares neither a subject nor an image with it, or else the
    next one with another image, or else the next one."""
    count = len(subjects)
    out = []
    for place, (own, shown) in enumerate(zip(subjects, pictures, strict=True)):
        ahead = [(place + step) % count for step in range(1, count)] or [place]
        apart = [other for other in ahead if not shown & pictures[other]] or ahead
        out.append(next((other for other in apart if not own & subjects[other]), apart[0]))
    return out


def _right(
    rows: CorpusRows, records: Sequence[int], subjects: Sequence[frozenset[str]]
) -> Int[np.ndarray, "B R"]:
    """The bank's first documents that show another image of a subject of each record."""
    most, bank = rows.config.documents, rows.bank
    out = np.full((len(records), most), NONE, np.int64)
    wanted = frozenset().union(*subjects)
    if bank is None or not wanted or len(bank) > _LARGEST:
        return out
    holders: dict[str, list[int]] = {name: [] for name in wanted}
    for row, document in enumerate(bank.documents()):
        for name in wanted.intersection(document.subjects) if document.has_image else ():
            holders[name].append(row)
    for place, (record, own) in enumerate(zip(records, subjects, strict=True)):
        mine = set(bank.showing(rows.corpus.document(record).pictures).tolist())
        right = sorted({row for name in own for row in holders[name]} - mine)[:most]
        out[place, : len(right)] = right
    return out


def _batches(
    rows: CorpusRows,
    records: Sequence[int],
    documents: Int[np.ndarray, "B R"],
    batch: int,
    share: slice,
) -> list[HostBatch]:
    """The records in whole batches; the first ones again where they do not fill the last."""
    bare = copy.copy(rows)
    cm3 = dataclasses.replace(rows.config.cm3, retrieved_weight=0.0)
    bare.config = dataclasses.replace(rows.config, cm3=cm3)
    count = -(-len(records) // batch) * batch
    order = np.resize(np.arange(len(records)), count)
    out = []
    for start in range(0, count, batch):
        part = order[start : start + batch][share]
        plan = _plan(rows, np.asarray(records)[part], documents[part])
        out.append(HostBatch(bare.build(plan), Position(), ""))
    return out


def _plan(
    rows: CorpusRows, records: Int[np.ndarray, " B"], documents: Int[np.ndarray, "B R"]
) -> Plan:
    """A row for each record, behind as many of its documents as fit."""
    nothing = np.zeros(len(records), np.int32)
    lengths = np.where(documents == NONE, 0, rows.table.bank_lengths[documents]).astype(np.int32)
    queries = rows.table.lengths[records].astype(np.int32)
    scores = np.broadcast_to(-np.arange(documents.shape[1], dtype=np.float32), documents.shape)
    room = rows.config.context
    fitted = fit_samples(np, lengths, scores, queries, nothing, room)
    shown = np.where(fitted.document_lengths > 0, documents, NONE)
    places = Places(np.arange(len(records), dtype=np.int32), nothing, nothing + 1)
    return Plan(records, records, nothing, shown, nothing, places, len(records), dropped=0)
