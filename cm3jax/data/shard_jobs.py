"""The work on one shard of a bank or a corpus: a function of the job and the shard's number.

Hence any number of processes, in any order, write the same bytes.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from cm3jax.config import Experiment
from cm3jax.data.changes import SourceState
from cm3jax.data.corpus import CorpusDocument, CorpusWriter, Shard
from cm3jax.data.neighbours import Neighbourhood
from cm3jax.data.sources import GENERATED, DatedSource, Source, open_source
from cm3jax.data.tokenize import Tokenised, TokenisedBatch, Tools, encoder_parts, read_and_tokenise
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.bank_writer import BankWriter
from cm3jax.retrieval.removed import Removed
from cm3jax.sequence.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class SplitJob:
    """One split to be made; it can be sent to another process."""

    experiment: Experiment
    split: str
    """`bank`, `train` or `validation`."""
    made_from: str = ""
    """Identifies all settings that decide the content; empty before they are known."""
    states: tuple[str, ...] = ()
    """Marks of the raw records of each shard; none where they are generated."""

    @property
    def room(self) -> int | None:
        """Tokens of the row that a record must fit; None where rows are cut from a stream."""
        return self.experiment.model.context if self.experiment.data.rows == "whole" else None

    def vocab(self, tools: Tools) -> Vocab:
        """The experiment's vocabulary as the tokenizers fill it; `UserError` if they don't fit."""
        return tools.vocab(self.experiment.vocab, self.experiment.data.image_size)


Work = Callable[[int], int]
"""Makes and saves the shard of a number; gives how many of its records came through."""


def bank_writer(job: SplitJob, tools: Tools) -> BankWriter:
    """What writes the job's bank."""
    fingerprints = (tools.encoder.fingerprint, job.vocab(tools).fingerprint)
    return BankWriter(job.experiment.data.bank, job.made_from, *fingerprints, states=job.states)


def corpus_writer(job: SplitJob) -> CorpusWriter:
    """What writes the job's corpus."""
    return CorpusWriter(f"{job.experiment.data.corpus}/{job.split}", job.made_from, job.states)


def writer_of(job: SplitJob) -> BankWriter | CorpusWriter:
    """What says whether the job's place is ours to write."""
    if job.split == "bank":
        return BankWriter(job.experiment.data.bank, job.made_from, "", "")
    return corpus_writer(job)


def make_work(job: SplitJob, tools: Tools) -> Work:
    """Open what the job's shards are made from."""
    experiment = job.experiment
    vocab, size = job.vocab(tools), experiment.data.shard
    source = open_source(experiment.data, job.split, experiment.seed)
    room = None if job.split == "bank" else job.room
    save = _bank_saver(job, tools) if job.split == "bank" else _corpus_saver(job, tools)

    def work(number: int) -> int:
        span = range(number * size, min((number + 1) * size, len(source)))
        batch = read_and_tokenise(source, span, tools, vocab, room)
        return save(number, batch, _require_unchanged(job, number, source, span))

    return work


def state_of(job: SplitJob) -> SourceState | None:
    """What the job's split of the source is read from now; None where it is generated."""
    data = job.experiment.data
    if data.source in GENERATED:
        return None
    source = open_source(data, job.split, job.experiment.seed)
    if not isinstance(source, DatedSource):
        return None
    return SourceState.of(source.made(range(len(source))))


def marks(state: SourceState, size: int) -> tuple[str, ...]:
    """The marks of shards of this many records."""
    starts = range(0, max(1, len(state.table)), size)
    return tuple(state.part(range(start, start + size)).mark for start in starts)


def _require_unchanged(
    job: SplitJob, number: int, source: Source, span: range
) -> SourceState | None:
    """The state of a shard's records, which were just read; `UserError` if it is another one than
    when the work began."""
    if not job.states or not isinstance(source, DatedSource):
        return None
    state = SourceState.of(source.made(span))
    if state.mark != job.states[number]:
        raise UserError(
            f"{job.experiment.data.source} has changed while it was prepared; give the "
            "command again: what is made from unchanged records is kept."
        )
    return state


Saver = Callable[[int, TokenisedBatch, SourceState | None], int]


def _bank_saver(job: SplitJob, tools: Tools) -> Saver:
    writer = bank_writer(job, tools)

    def save(number: int, batch: TokenisedBatch, made: SourceState | None) -> int:
        batch = _without(batch, writer.removed)
        items = batch.items
        parts = [encoder_parts(item.raw, tools.encoder) for item in items]
        documents = [_bank_document(item, *part) for item, part in zip(items, parts, strict=True)]
        vectors, table = tools.encoder.encode_documents(parts), made.table if made else None
        writer.write(number, documents, vectors, batch.refused, table)
        return len(documents)

    return save


def _without(batch: TokenisedBatch, removed: Removed) -> TokenisedBatch:
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
    return TokenisedBatch(batch.numbers[kept], items, batch.refused | reasons)


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
        pictures=item.raw.pictures,
    )


def _corpus_saver(job: SplitJob, tools: Tools) -> Saver:
    writer, bank = corpus_writer(job), Bank.open(job.experiment.data.bank)
    config, seed = job.experiment.retrieval, job.experiment.seed
    neighbourhood = Neighbourhood(config, seed, tools.encoder, bank)
    removed = Removed.of(job.experiment.data.bank)

    def save(number: int, batch: TokenisedBatch, made: SourceState | None) -> int:
        batch = _without(batch, removed)
        shard = _shard(batch, neighbourhood)
        if job.split == "validation":
            shard = dataclasses.replace(shard, leaks=neighbourhood.leaks(batch.items))
        writer.write(number, shard, made)
        return len(shard.documents)

    return save


def _shard(batch: TokenisedBatch, neighbourhood: Neighbourhood) -> Shard:
    chosen = neighbourhood.candidates(batch.items, batch.numbers)

    def column(name: str) -> np.ndarray:
        table = [[getattr(choice, name) for choice in view] for view in chosen]
        return np.moveaxis(np.asarray(table), 2, 0)

    counts = [choice.counts for view in chosen for choice in view]
    raws = [(item.raw, item.ids) for item in batch.items]
    return Shard(
        documents=[
            CorpusDocument(
                *(raw.key, raw.kind, raw.licence, ids),
                *(raw.source, raw.hash, raw.pictures, raw.subjects),
            )
            for raw, ids in raws
        ],
        neighbours=column("ids").astype(np.int32),
        scores=column("scores").astype(np.float32),
        refused=batch.refused,
        selection={name: sum(count[name] for count in counts) for name in counts[0]},
    )
