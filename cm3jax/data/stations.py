"""The work on one shard of a bank or a corpus: a function of the job and the shard's number.

Hence any number of processes, in any order, write the same bytes.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from cm3jax.config import Experiment
from cm3jax.data.corpus import CorpusDocument, CorpusWriter, Shard
from cm3jax.data.neighbours import Neighbourhood
from cm3jax.data.sources import open_source
from cm3jax.data.tokenised import Batch, Tokenised, Tools, encoder_parts, read
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.bank_writer import BankWriter
from cm3jax.retrieval.removed import Removed


@dataclasses.dataclass(frozen=True)
class Job:
    """One split to be made; it can be sent to another process."""

    experiment: Experiment
    split: str
    """`bank`, `train` or `validation`."""
    made_from: str
    """Identifies everything that decides the content."""


Work = Callable[[int], int]
"""Makes and saves the shard of a number; gives how many of its records came through."""


def bank_writer(job: Job, tools: Tools) -> BankWriter:
    """What writes the job's bank."""
    fingerprints = (tools.encoder.fingerprint, tools.vocab(job.experiment).fingerprint)
    return BankWriter(job.experiment.data.bank, job.made_from, *fingerprints)


def corpus_writer(job: Job) -> CorpusWriter:
    """What writes the job's corpus."""
    return CorpusWriter(f"{job.experiment.data.corpus}/{job.split}", job.made_from)


def writer_of(job: Job) -> BankWriter | CorpusWriter:
    """What says whether the job's place is ours to write."""
    if job.split == "bank":
        return BankWriter(job.experiment.data.bank, job.made_from, "", "")
    return corpus_writer(job)


def make_work(job: Job, tools: Tools) -> Work:
    """Open what the job's shards are made from."""
    experiment = job.experiment
    vocab, size = tools.vocab(experiment), experiment.data.shard
    source = open_source(experiment.data, job.split, experiment.seed)
    room = None if job.split == "bank" else room_for(experiment)
    save = _bank_saver(job, tools) if job.split == "bank" else _corpus_saver(job, tools)

    def work(number: int) -> int:
        span = range(number * size, min((number + 1) * size, len(source)))
        batch = read(source, span, tools, vocab, room)
        return save(number, batch)

    return work


def room_for(experiment: Experiment) -> int | None:
    """Tokens of the row that a record must fit; None where rows are cut from a stream."""
    return experiment.model.context if experiment.data.rows == "whole" else None


def _bank_saver(job: Job, tools: Tools) -> Callable[[int, Batch], int]:
    writer = bank_writer(job, tools)

    def save(number: int, batch: Batch) -> int:
        batch = _without(batch, writer.removed)
        items = batch.items
        parts = [encoder_parts(item.raw, tools.encoder) for item in items]
        documents = [_bank_document(item, *part) for item, part in zip(items, parts, strict=True)]
        writer.write(number, documents, tools.encoder.encode_documents(parts), batch.refused)
        return len(documents)

    return save


def _without(batch: Batch, removed: Removed) -> Batch:
    """A batch without what was taken out of the bank: neither the bank nor a corpus has it."""
    gone = [removed.covers(item.raw.key, item.raw.source, item.raw.licence) for item in batch.items]
    if not any(gone):
        return batch
    kept = np.flatnonzero(np.logical_not(gone))
    reasons = {
        item.raw.key: "it was taken out of the bank"
        for item in itertools.compress(batch.items, gone)
    }
    items = [batch.items[place] for place in kept]
    return Batch(batch.numbers[kept], items, batch.refused | reasons)


def _bank_document(item: Tokenised, text: str | None, image: np.ndarray | None) -> BankDocument:
    return BankDocument(
        key=item.raw.key,
        ids=item.ids,
        text=text or "",
        has_text=text is not None,
        has_image=image is not None,
        source=item.raw.source,
        licence=item.raw.licence,
        subjects=item.raw.subjects,
        held_out=item.raw.held_out,
        hash=item.raw.hash,
    )


def _corpus_saver(job: Job, tools: Tools) -> Callable[[int, Batch], int]:
    writer, bank = corpus_writer(job), Bank.open(job.experiment.data.bank)
    neighbourhood = Neighbourhood(job.experiment, tools.encoder, bank)

    removed = Removed.of(job.experiment.data.bank)

    def save(number: int, batch: Batch) -> int:
        batch = _without(batch, removed)
        shard = _shard(batch, neighbourhood)
        if job.split == "validation":
            shard = dataclasses.replace(shard, leaks=neighbourhood.leaks(batch.items))
        writer.write(number, shard)
        return len(shard.documents)

    return save


def _shard(batch: Batch, neighbourhood: Neighbourhood) -> Shard:
    chosen = neighbourhood.candidates(batch.items, batch.numbers)

    def column(name: str) -> np.ndarray:
        table = [[getattr(choice, name) for choice in view] for view in chosen]
        return np.moveaxis(np.asarray(table), 2, 0)

    counts = [choice.counts for view in chosen for choice in view]
    raws = [(item.raw, item.ids) for item in batch.items]
    return Shard(
        documents=[
            CorpusDocument(raw.key, raw.kind, raw.licence, ids, raw.source, raw.hash)
            for raw, ids in raws
        ],
        neighbours=column("ids").astype(np.int32),
        scores=column("scores").astype(np.float32),
        refused=batch.refused,
        selection={name: sum(count[name] for count in counts) for name in counts[0]},
    )
