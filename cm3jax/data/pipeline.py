"""Streams of batches: where a run is in its data, and the batch of any position.

A stream owns no state: `batches(position)` yields the same global batches from there on, whatever
the number of processes, and each process materialises its own rows alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np

from cm3jax import draws
from cm3jax.config import Experiment
from cm3jax.data.corpus import Corpus, Documents
from cm3jax.data.packing import BLOCK, Plan, Table, join, plan_block
from cm3jax.errors import UserError
from cm3jax.files import digest
from cm3jax.retrieval.bank import Bank
from cm3jax.sequence import Batch, Samples, build_rows, fingerprint


@dataclasses.dataclass(frozen=True)
class Position:
    """The next row that a stream gives: the data position of a checkpoint."""

    epoch: int = 0
    """Passes over the records that are complete."""
    block: int = 0
    """Blocks of this epoch that are complete; streams without blocks stay at 0."""
    row: int = 0
    """Rows (or records) of this block that were given."""


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One process's share of a global batch."""

    data: Any
    """A pytree of numpy arrays whose leading axis is this process's rows."""
    next: Position
    """The position after this batch: save it with the step that consumed the batch."""
    fingerprint: str
    """Hash of the share; `combine_fingerprints` makes the global batch's out of all shares."""


@runtime_checkable
class Stream(Protocol):
    """What the trainer reads."""

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Batches from `position` on, without end."""


def combine_fingerprints(shares: list[str]) -> str:
    """The global batch's fingerprint from its processes' shares, in any order."""
    return f"{sum(int(share, 16) for share in shares) % 2**64:016x}"


def row_slice(batch: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process materialises.

    Raises `UserError` when the processes cannot share the batch equally.
    """
    if batch % process_count:
        raise UserError(
            f"data.batch={batch} cannot be shared equally by {process_count} processes; "
            f"make it a multiple of {process_count}."
        )
    rows = batch // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


@dataclasses.dataclass(frozen=True)
class RecordStream:
    """Shuffled in-memory records, for the image tokenizer and CLIP.

    `arrays` share their leading axis. An epoch's last records that do not fill a batch open the
    next epoch's first batch: no record is lost or repeated within an epoch.
    """

    arrays: dict[str, np.ndarray]
    batch: int
    """Records of a global batch."""
    seed: int
    process_index: int = 0
    process_count: int = 1

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Batches `{name: array[rows]}` from `position` on; `UserError` without records."""
        count = len(next(iter(self.arrays.values())))
        if not count:
            raise UserError("there are no records to train on; check data.source and data.records.")
        share = row_slice(self.batch, self.process_index, self.process_count)
        epoch, row = position.epoch, position.row
        order = draws.permutation(self.seed, epoch, count)
        while True:
            parts, missing = [], self.batch
            while missing:
                part = order[row : row + missing]
                parts.append(part)
                missing, row = missing - len(part), row + len(part)
                if row == count:
                    epoch, row = epoch + 1, 0
                    order = draws.permutation(self.seed, epoch, count)
            records = np.concatenate(parts)[share]
            data = {name: array[records] for name, array in self.arrays.items()}
            mark = digest(np.asarray([share.start]), records)
            yield HostBatch(data, Position(epoch, 0, row), mark)


class CorpusStream:
    """CM3 rows of a prepared corpus, `sequence.Batch` by `sequence.Batch`.

    The rows of all blocks of all epochs follow one another, and a batch takes the next ones: it
    may reach into the next block or epoch, and an epoch holds every record exactly once. Reading,
    rotating and packing run in Grain's threads, a few batches ahead.
    """

    tokens_at_once = 1 << 15
    """Small batches are made several at once, since numpy is slow on small arrays."""

    def __init__(
        self,
        experiment: Experiment,
        corpus: Corpus,
        bank: Bank,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.experiment = experiment
        self.corpus = corpus
        self.bank = bank
        self.table = Table(corpus.lengths, corpus.neighbours, corpus.scores, bank.lengths)
        self._share = row_slice(experiment.data.batch, process_index, process_count)
        self._queries = Documents(corpus.lengths, corpus.ids, corpus.all_ids)
        self._documents = Documents(
            bank.lengths, bank.ids, lambda: (document.ids for document in bank.documents())
        )
        longest = int(np.argmax(corpus.lengths))
        if corpus.lengths[longest] + 2 > experiment.model.context:
            raise UserError(
                f"record {corpus.document(longest).key!r} of {corpus.path} has "
                f"{corpus.lengths[longest]} tokens and does not fit a row of model.context="
                f"{experiment.model.context}; raise that, or prepare the corpus again with it."
            )

    @staticmethod
    def open(experiment: Experiment, split: Literal["train", "validation"]) -> "CorpusStream":
        """The stream of this process over `data.corpus`.

        Raises `UserError` when the corpus or its bank is missing or damaged, does not belong to the
        other, or was made with other vocabulary sizes, and when a record does not fit a row.
        """
        corpus = Corpus.open(f"{experiment.data.corpus}/{split}")
        if corpus.vocab.config != experiment.vocab:
            raise UserError(
                f"the corpus {corpus.path} was made with {corpus.vocab.config}, but this run has "
                f"{experiment.vocab}; make them equal."
            )
        bank = Bank.open(experiment.data.bank, vocab_fingerprint=corpus.vocab.fingerprint)
        if bank.fingerprint != corpus.manifest["bank"]:
            raise UserError(
                f"the neighbours of {corpus.path} point into another bank than {bank.path}; "
                "run launch.prepare."
            )
        return CorpusStream(experiment, corpus, bank, jax.process_index(), jax.process_count())

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """This process's rows of the global batches from `position` on, without end."""
        import grain

        threads = self.experiment.data.threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        tokens = self.experiment.model.context * (self._share.stop - self._share.start)
        together = -(-self.tokens_at_once // tokens)
        shares = self._shares(position)
        while True:
            # Grain wants a sequence: a stretch of the endless one at a time.
            stretch = [list(itertools.islice(shares, together)) for _ in range(4 * threads)]
            dataset = grain.MapDataset.source(stretch).map(self._materialise)
            for batches in dataset.to_iter_dataset(options):
                yield from batches

    @functools.cached_property
    def plan(self) -> Callable[[int, int], Plan]:
        """`plan(epoch, block)`: the rows of one block, the same on every process."""
        e = self.experiment
        room, documents = e.model.context, e.retrieval.documents
        # Each of a block's batches asks for its plan.
        return functools.lru_cache(maxsize=2)(
            lambda *at: plan_block(self.table, e.seed, *at, room, documents, e.cm3)
        )

    def _shares(self, position: Position) -> Iterator["_Share"]:
        blocks = -(-len(self.corpus) // BLOCK)
        epoch, block, row = position.epoch, position.block, position.row
        while True:
            parts, missing = [], self.experiment.data.batch
            while missing:
                plan = self.plan(epoch, block)
                stop = min(row + missing, plan.rows)
                parts.append(plan.slice(row, stop))
                missing, row = missing - (stop - row), stop
                if row == plan.rows:
                    epoch, block = (epoch, block + 1) if block + 1 < blocks else (epoch + 1, 0)
                    row = 0
            share = join(parts).slice(self._share.start, self._share.stop)
            yield _Share(share, Position(epoch, block, row))

    def _materialise(self, shares: list["_Share"]) -> list[HostBatch]:
        plan = join([share.plan for share in shares])
        rows = self.rows(plan)
        records = np.full((plan.rows, int(plan.places.segments.max())), -1)
        records[plan.places.rows, plan.places.segments - 1] = plan.records
        batches = []
        for number, share in enumerate(shares):
            own = slice(number * share.plan.rows, (number + 1) * share.plan.rows)
            data = jax.tree.map(lambda array, own=own: array[own], rows)
            mark = fingerprint(data, records[own], self._share.start)
            batches.append(HostBatch(data, share.next, mark))
        return batches

    def rows(self, plan: Plan) -> Batch:
        """The rows of a plan."""
        query, query_lengths = self._queries.padded(plan.records)
        documents, document_lengths = self._documents.padded(plan.documents)
        samples = Samples(
            documents, document_lengths, query, query_lengths, plan.masks, plan.records
        )
        return build_rows(
            np,
            samples,
            plan.places,
            (plan.rows, self.experiment.model.context),
            seed=self.experiment.seed,
            epoch=plan.epochs,
            config=self.experiment.cm3,
            vocab=self.corpus.vocab,
        )


@dataclasses.dataclass(frozen=True)
class _Share:
    """A process's share of a batch that was not made yet."""

    plan: Plan
    next: Position
