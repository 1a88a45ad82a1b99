"""Streams of batches: where a run is in its data, and the batch of any position.

A stream owns no state: `batches(position)` yields the same global batches from there on, whatever
the number of processes, and each process materialises only its own rows.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, overload, runtime_checkable

import jax
import numpy as np

from cm3jax.config import DataConfig, VocabConfig
from cm3jax.data.ahead import ahead
from cm3jax.data.cm3_rows import CorpusRows, RowsConfig
from cm3jax.data.corpus import Corpus, mixture_part
from cm3jax.data.mixing import row_weights
from cm3jax.data.packing import ELSEWHERE, Plan, Position, join_plans
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.sequence import prng
from cm3jax.sequence.rows import batch_fingerprint
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One process's share of a global batch."""

    data: Any
    """A pytree of numpy arrays whose leading axis is this process's rows; jax arrays among them are
    on the devices already and go into every step as they are."""
    next: Position
    """The position after this batch: save it with the step that consumed the batch."""
    fingerprint: str
    """Hash of the share; `combine_fingerprints` makes the global batch's out of all shares."""


@runtime_checkable
class Stream(Protocol):
    """What the trainer reads."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of what is read, by name; another life of a run must read the same.

        Names with `PART` in them are those of its parts, to say what changed.
        """

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Batches from `position` on, without end, or none at all where nothing is held back."""


@runtime_checkable
class Described(Protocol):
    """A stream that says something about its data when training begins."""

    notes: list[str]
    """One sentence each."""


class NoRecords:
    """The stream of a split without records: it ends at once."""

    fingerprints: Mapping[str, str] = {}

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Nothing."""
        return iter(())


PART = "' "
"""In a fingerprint's name, behind the name of the data: the rest names a part of them."""


def marks_of_records(whole: str, count: int, parts: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of `count` records: the whole's, and its parts' by name."""
    named = {f"records{PART}{name}": mark for name, mark in parts.items()}
    return {"records": whole, f"records{PART}number": str(count), **named}


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


@dataclasses.dataclass(frozen=True, eq=False)
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

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of the arrays, together and apart."""
        whole = digest(*self.arrays.keys(), *self.arrays.values())
        parts = {name: digest(array) for name, array in self.arrays.items()}
        return marks_of_records(whole, len(next(iter(self.arrays.values()))), parts)

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Batches `{name: array[rows]}` from `position` on; `UserError` without records, and where
        the position is beyond the last one."""
        count = len(next(iter(self.arrays.values())))
        if not count:
            raise UserError("there are no records to train on; check data.source and data.records.")
        if position.row >= count or position.block or position.parts:
            raise UserError(
                f"the run goes on at {position.place}, but the data have {count} records: they are "
                f"not those that it was trained on. {ELSEWHERE}"
            )
        share = row_slice(self.batch, self.process_index, self.process_count)
        epoch, row = position.epoch, position.row
        order = prng.permutation(self.seed, epoch, count)
        while True:
            parts, missing = [], self.batch
            while missing:
                part = order[row : row + missing]
                parts.append(part)
                missing, row = missing - len(part), row + len(part)
                if row == count:
                    epoch, row = epoch + 1, 0
                    order = prng.permutation(self.seed, epoch, count)
            records = np.concatenate(parts)[share]
            data = {name: array[records] for name, array in self.arrays.items()}
            mark = digest(np.asarray([share.start]), records)
            yield HostBatch(data, Position(epoch, 0, row), mark)


def with_epochs(
    batches: Iterator[HostBatch], position: Position
) -> Iterator[tuple[HostBatch, int]]:
    """Each batch with the epoch in which it begins."""
    for batch in batches:
        yield batch, position.epoch
        position = batch.next


@dataclasses.dataclass(frozen=True)
class Equipped:
    """A stream of dictionaries that also hold what does not change, such as foreign weights."""

    stream: Stream
    constants: Mapping[str, Any]
    """Trees of jax arrays on the run's mesh."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The stream's."""
        return self.stream.fingerprints

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """The stream's batches from `position` on."""
        for batch in self.stream.batches(position):
            yield dataclasses.replace(batch, data={**batch.data, **self.constants})


class CorpusStream:
    """CM3 rows of a prepared corpus, or of a mixture of several, `Batch` by `Batch`.

    The rows of all blocks of all epochs follow one another, and a batch takes the next ones: it
    may reach into the next block or epoch, and an epoch holds every record exactly once. Of a
    mixture, every corpus has its own epochs; which of them gives a row is drawn by (seed, number
    of the row). Reading, rotating and packing run in Grain's threads, a few batches ahead.
    """

    tokens_at_once = 1 << 18
    """Small batches are made several at once, since numpy is slow on small arrays; the first ones
    fewer at once, since a run waits for them and a validation wants no more."""

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        corpora: Sequence[CorpusRows],
        process_index: int = 0,
        process_count: int = 1,
        shares: Sequence[float] = (),
    ):
        """`corpora` are that of `data.corpus`, or those of `data.mixture` in its order; `shares`
        are their weights where they are not the mixture's."""
        self.data, self.seed = data, seed
        self.corpora = corpora
        self._process = (process_index, process_count)
        self.share = row_slice(data.batch, process_index, process_count)
        weights = np.cumsum(row_weights(data, corpora, shares) if len(corpora) > 1 else [1.0])
        self._thresholds = np.round(weights[:-1] / weights[-1:] * 2**32)
        first = corpora[0].corpus
        for other in (rows.corpus for rows in corpora[1:]):
            if other.vocab != first.vocab:
                raise UserError(
                    f"{other.path} was prepared with another vocabulary or other tokenizers than "
                    f"{first.path}; prepare both with the same."
                )

    @overload
    @staticmethod
    def open(
        data: DataConfig, vocab: VocabConfig, rows: RowsConfig, split: Literal["train"]
    ) -> "CorpusStream": ...

    @overload
    @staticmethod
    def open(
        data: DataConfig, vocab: VocabConfig, rows: RowsConfig, split: Literal["validation"]
    ) -> "CorpusStream | NoRecords": ...

    @staticmethod
    def open(
        data: DataConfig,
        vocab: VocabConfig,
        rows: RowsConfig,
        split: Literal["train", "validation"],
    ) -> "CorpusStream | NoRecords":
        """The stream of this process over `data.corpus` or `data.mixture`; `NoRecords` where
        nothing is held back for validation.

        Raises `UserError` when a corpus or its bank is missing or damaged, does not belong to the
        other, or was made with other vocabulary sizes or tokenizers, and when a record does not
        fit a row.
        """
        if split == "validation" and (empty := _empty(data)):
            kept = tuple(part for part in data.mixture if part not in empty)
            if not kept:
                return NoRecords()
            data = dataclasses.replace(data, mixture=kept)
        parts = [mixture_part(name) for name, _ in data.mixture]
        homes = [(f"{home}/corpus", f"{home}/bank", kind) for home, kind in parts]
        corpora = [
            CorpusRows.open(rows, vocab, f"{corpus}/{split}", bank, kind)
            for corpus, bank, kind in homes or [(data.corpus, data.bank, "")]
        ]
        processes = (jax.process_index(), jax.process_count())
        return CorpusStream(data, rows.seed, corpora, *processes)

    def remade(self, config: RowsConfig, shares: Sequence[float]) -> "CorpusStream":
        """The same corpora, their rows made by another config and mixed in other shares."""
        corpora = [rows.remade(config) for rows in self.corpora]
        return CorpusStream(self.data, self.seed, corpora, *self._process, shares)

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the ids."""
        return self.corpora[0].corpus.vocab

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of every corpus, its bank, and the encoder that made the bank's vectors."""
        if len(self.corpora) == 1:
            return self.corpora[0].fingerprints
        return {
            f"{name} {number}": mark
            for number, corpus in enumerate(self.corpora, 1)
            for name, mark in corpus.fingerprints.items()
        }

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """This process's rows of the global batches from `position` on, without end."""
        threads = self.data.threads
        tokens = self.corpora[0].config.context * (self.share.stop - self.share.start)
        most = -(-self.tokens_at_once // tokens)
        shares = self._shares(position)

        def together() -> Iterator[list[_Share]]:
            size = 1
            for number in itertools.count(1):
                yield list(itertools.islice(shares, size))
                if number % (4 * threads) == 0:
                    size = min(2 * size, most)

        for batches in ahead(together(), self._materialise, threads):
            yield from batches

    @property
    def notes(self) -> list[str]:
        """How many documents the samples of each corpus are shown."""
        return [rows.documents_shown for rows in self.corpora if rows.bank is not None]

    def _shares(self, position: Position) -> Iterator["_Share"]:
        given, mixed = position.row, len(self.corpora) > 1
        count = len(self.corpora)
        if position != Position() and len(position.parts) != (count if mixed else 0):
            raise UserError(
                f"the run has read {len(position.parts) or 1} corpora so far, and data.mixture "
                f"would make it {count}; give those that it began with, or another workdir."
            )
        places = list(position.parts or [Position()] * count) if mixed else [position]
        while True:
            chosen = self._choose(given)
            given += len(chosen)
            plans, rows = [], []
            for number, corpus in enumerate(self.corpora):
                wanted = np.flatnonzero(chosen == number)
                plan, places[number] = corpus.take(places[number], len(wanted))
                own = np.searchsorted(wanted, (self.share.start, self.share.stop)).tolist()
                plans.append(plan.slice(*own))
                rows.append(wanted[slice(*own)] - self.share.start)
            after = Position(row=given, parts=tuple(places)) if mixed else places[0]
            yield _Share(plans, rows, after)

    def _choose(self, given: int) -> Int[np.ndarray, " B"]:
        """The corpus of each row of the next batch, after `given` rows."""
        rows = given + np.arange(self.data.batch)
        words = prng.bits(np, self.seed, rows >> 32, rows, prng.PrngStream.MIXTURE, 1)
        return np.searchsorted(self._thresholds, words[:, 0], side="right")

    def _materialise(self, shares: list["_Share"]) -> list[HostBatch]:
        count = self.share.stop - self.share.start
        parts, records, order = [], [], []
        for number, corpus in enumerate(self.corpora):
            plan = join_plans([share.plans[number] for share in shares])
            if plan.rows:
                parts.append(corpus.build(plan))
                # Records of different corpora are different records.
                records.append(_padded(plan, plan.records * len(self.corpora) + number))
                order += [share.rows[number] + i * count for i, share in enumerate(shares)]
        rows, ids = parts[0], records[0]
        if len(parts) > 1:
            by_row = np.argsort(np.concatenate(order))
            rows = jax.tree.map(lambda *arrays: np.concatenate(arrays)[by_row], *parts)
            ids = _side_by_side(records)[by_row]
        batches = []
        for number, share in enumerate(shares):
            own = slice(number * count, (number + 1) * count)
            data = jax.tree.map(lambda array, own=own: array[own], rows)
            mark = batch_fingerprint(data, ids[own], self.share.start)
            batches.append(HostBatch(data, share.next, mark))
        return batches


def _empty(data: DataConfig) -> list[tuple[str, float]]:
    """The parts of the mixture, or the corpus as one, of which nothing is held back."""
    homes = [(f"{mixture_part(part[0])[0]}/corpus", part) for part in data.mixture]
    corpora = homes or [(data.corpus, (data.corpus, 1.0))]
    return [part for home, part in corpora if not len(Corpus.open(f"{home}/validation"))]


def _padded(plan: Plan, values: Int[np.ndarray, " samples"]) -> Int[np.ndarray, "rows N"]:
    """One value per sample, by rows; -1 as padding."""
    table = np.full((plan.rows, int(plan.places.segments.max())), -1)
    table[plan.places.rows, plan.places.segments - 1] = values
    return table


def _side_by_side(tables: list[Int[np.ndarray, "_ _"]]) -> Int[np.ndarray, "rows N"]:
    """Tables one below the other, each as wide as the widest."""
    width = max(table.shape[1] for table in tables)
    fills = [((0, 0), (0, width - table.shape[1])) for table in tables]
    padded = (np.pad(*part, constant_values=-1) for part in zip(tables, fills, strict=True))
    return np.concatenate(list(padded))


@dataclasses.dataclass(frozen=True, eq=False)
class _Share:
    """A process's share of a batch that was not made yet."""

    plans: list[Plan]
    """By corpus."""
    rows: list[np.ndarray]
    """Where the rows of each plan are in the share, int64."""
    next: Position
