"""The CM3 rows of one prepared corpus: all processes plan all rows, each builds its own."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from etils import epath

from cm3jax.config import CM3Config, CurriculumConfig, Experiment, VocabConfig
from cm3jax.data.corpus import Corpus, Documents
from cm3jax.data.packing import (
    BLOCK,
    ELSEWHERE,
    OWN,
    LengthTable,
    Plan,
    Position,
    join_plans,
    plan_block,
    plan_stream_block,
)
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument, content_hash
from cm3jax.retrieval.select import NONE
from cm3jax.sequence.rows import Batch, Samples, build_rows, build_stream_rows
from cm3jax.shapes import Bool, Int

_WAYS = {"whole": (plan_block, build_rows), "stream": (plan_stream_block, build_stream_rows)}
"""How each kind of `data.rows` is planned and built."""


_ASKED = {"both": slice(None), "text": slice(0, 1), "image": slice(1, 2)}
"""The part of a record's neighbours with the candidates of each kind of query."""


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """What of an experiment decides the rows of a corpus."""

    rows: Literal["whole", "stream"]
    """As `data.rows`."""
    context: int
    """Tokens of a row."""
    documents: int
    """As `retrieval.documents`."""
    queries: Literal["both", "text", "image"]
    """As `retrieval.queries`."""
    cm3: CM3Config
    seed: int

    def at_stage(self, stages: CurriculumConfig, number: int) -> "RowsConfig":
        """The config of one stage."""
        cm3 = dataclasses.replace(self.cm3, **stages.cm3_of(number))
        return dataclasses.replace(self, cm3=cm3, **stages.retrieval_of(number))

    @classmethod
    def of(cls, experiment: Experiment) -> "RowsConfig":
        """The part of an experiment that decides its rows."""
        return cls(
            rows=experiment.data.rows,
            context=experiment.model.context,
            documents=experiment.retrieval.documents,
            queries=experiment.retrieval.queries,
            cm3=experiment.cm3,
            seed=experiment.seed,
        )


def _own(
    corpus: Corpus, bank: Bank, records: Int[np.ndarray, " B"], documents: Int[np.ndarray, " B"]
) -> Bool[np.ndarray, " B"]:
    """Which of the bank's documents are their record, or have its image."""
    found = np.zeros(len(records), bool)
    for place, (record, row) in enumerate(zip(records.tolist(), documents.tolist(), strict=True)):
        one = corpus.document(record)
        same = bank.content[row] == np.uint64(content_hash(one.ids))
        found[place] = same or row in bank.showing(one.pictures)
    return found


class CorpusRows:
    """A corpus with its bank; the rows of all blocks of all epochs follow one another.

    Raises `UserError` for a record that does not fit a row, where rows hold whole samples.
    """

    def __init__(
        self,
        config: RowsConfig,
        corpus: Corpus,
        bank: Bank | None,
        held: tuple[Documents, Documents] | None = None,
    ):
        """Without a bank no record has documents; `held` are the ids of both, if in memory."""
        self.config = config
        self.corpus = corpus
        self.bank = bank
        if held is None:
            held = Documents(corpus.lengths, corpus.ids, corpus.all_ids), _documents_of(bank)
        self._queries, self._documents = held
        asked = _ASKED[config.queries]
        self.table = LengthTable(
            corpus.lengths,
            corpus.neighbours[:, :, asked],
            corpus.scores[:, :, asked],
            self._documents.lengths,
            corpus.answers,
            None if bank is None else functools.partial(_own, corpus, bank),
        )
        self._plan, self._build = _WAYS[config.rows]
        if self._build is not build_rows and corpus.answers is not None:
            raise UserError(
                f"{corpus.path} has answers to learn, which rows of a stream would cut; use "
                "data.rows=whole."
            )
        sizes = corpus.lengths + (0 if corpus.answers is None else 3 * corpus.answers[:, 2])
        longest = int(np.argmax(sizes))
        if self._build is build_rows and sizes[longest] + 2 > config.context:
            raise UserError(
                f"record {corpus.document(longest).key!r} of {corpus.path} has "
                f"{sizes[longest]} tokens and does not fit a row of model.context="
                f"{config.context}; raise that, or prepare the corpus again with it."
            )

    @staticmethod
    def open(
        config: RowsConfig,
        vocab: VocabConfig,
        corpus: epath.PathLike,
        bank: epath.PathLike,
        kind: str = "",
    ) -> "CorpusRows":
        """The rows of the corpus (of one split) at a path, whose neighbours are in the bank `bank`.

        With a `kind`, only its records of that kind count. Raises `UserError` when corpus or bank
        is missing or damaged, does not belong to the other, or was made with other vocabulary sizes
        than `vocab`, and when there is no such record.
        """
        corpus = Corpus.open(corpus, vocab)
        if not corpus.manifest["bank"]:
            return CorpusRows(config, corpus.only(kind) if kind else corpus, None)
        bank = Bank.open(bank, vocab_fingerprint=corpus.vocab.fingerprint)
        if bank.fingerprint != corpus.manifest["bank"]:
            raise UserError(
                f"the neighbours of {corpus.path} point into another bank than {bank.path}; "
                "run python -m launch.prepare EXPERIMENT."
            )
        return CorpusRows(config, corpus.only(kind) if kind else corpus, bank)

    def remade(self, config: RowsConfig) -> "CorpusRows":
        """Other rows of the same corpus and bank, whose documents are not read again."""
        return CorpusRows(config, self.corpus, self.bank, (self._queries, self._documents))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the corpus, its bank, and the encoder that made the bank's vectors."""
        found = {"corpus": self.corpus.fingerprint}
        if self.bank is not None:
            found |= {"bank": self.bank.fingerprint, "encoder": self.bank.manifest["encoder"]}
        return found

    @functools.cached_property
    def plan(self) -> Callable[[int, int], Plan]:
        """`plan(epoch, block)`: the rows of one block, the same on every process."""
        config = self.config
        shown = (config.context, config.documents, config.cm3)
        # Each of a block's batches asks for its plan.
        return functools.lru_cache(maxsize=2)(
            lambda epoch, block: self._plan(self.table, config.seed, epoch, block, *shown)
        )

    @functools.cached_property
    def count(self) -> float:
        """Rows of an epoch, estimated from the first block of the first."""
        records = min(BLOCK, len(self.corpus))
        return self.plan(0, 0).rows * len(self.corpus) / records

    @property
    def documents_shown(self) -> str:
        """The shares of samples with 0, 1, 2 … documents, from the first block of the first epoch,
        and what did not fit."""
        plan, context = self.plan(0, 0), self.config.context
        _, samples = np.unique(plan.records, return_index=True)
        counts = (plan.documents[samples] != NONE).sum(1)
        shares = [f"{np.mean(counts == n):.0%} have {n}" for n in range(counts.max() + 1)]
        said = f"documents in front of the samples of {self.corpus.path}: {', '.join(shares)}"
        if plan.dropped:
            lost = plan.dropped / (plan.dropped + counts.sum())
            said += f"; {lost:.0%} of those drawn do not fit a row of {context} tokens"
        return f"{said}."

    def shown(self, rows: Iterable[int]) -> list[BankDocument]:
        """The documents in these rows of the bank; -1 is none."""
        return [] if self.bank is None else [self.bank.meta(row) for row in rows if row >= 0]

    def take(self, position: Position, count: int) -> tuple[Plan, Position]:
        """The next `count` rows from `position` on, and the position after them.

        Raises `UserError` for a position that the corpus does not have.
        """
        epoch, block, row = position.epoch, position.block, position.row
        if position.parts or block >= self._blocks or row >= self.plan(epoch, block).rows:
            raise UserError(
                f"the run goes on at {position.place}, which {self.corpus.path} does not have: it "
                f"is not the corpus that the run was trained on. {ELSEWHERE}"
            )
        parts: list[Plan] = []
        missing = count
        while missing or not parts:
            plan = self.plan(epoch, block)
            stop = min(row + missing, plan.rows)
            parts.append(plan.slice(row, stop))
            missing, row = missing - (stop - row), stop
            if row == plan.rows:
                after = self.after_block(Position(epoch, block, row))
                epoch, block, row = after.epoch, after.block, after.row
        return join_plans(parts), Position(epoch, block, row)

    def after_block(self, position: Position) -> Position:
        """The position itself at the beginning of a block, else the beginning of the next one."""
        if not position.row:
            return position
        if position.block + 1 < self._blocks:
            return Position(position.epoch, position.block + 1)
        return Position(position.epoch + 1)

    @property
    def _blocks(self) -> int:
        """Blocks of an epoch."""
        return -(-len(self.corpus) // BLOCK)

    def build(self, plan: Plan) -> Batch:
        """The rows of a plan."""
        query, query_lengths = self._queries.padded(plan.records)
        own = plan.documents == OWN
        documents, document_lengths = self._documents.padded(np.where(own, NONE, plan.documents))
        if own.any():
            room = max(documents.shape[-1], query.shape[-1])
            documents, itself = (_widened(ids, room) for ids in (documents, query))
            documents = np.where(own[..., None], itself[:, None], documents)
            document_lengths = np.where(own, query_lengths[:, None], document_lengths)
        answers = self.table.answers
        samples = Samples(
            documents,
            document_lengths,
            query,
            query_lengths,
            plan.masks,
            plan.keys,
            answers=None if answers is None else np.asarray(answers[plan.records]),
        )
        return self._build(
            np,
            samples,
            plan.places,
            (plan.rows, self.config.context),
            seed=self.config.seed,
            epoch=plan.epochs,
            config=self.config.cm3,
            vocab=self.corpus.vocab,
        )


def _documents_of(bank: Bank | None) -> Documents:
    """The ids of a bank's documents; none without a bank."""
    if bank is None:
        nothing = np.zeros(0, np.int32)
        return Documents(nothing, lambda row: nothing, lambda: ())
    return Documents(
        bank.lengths, bank.ids, lambda: (document.ids for document in bank.documents())
    )


def _widened(ids: Int[np.ndarray, "*B L"], room: int) -> Int[np.ndarray, "*B room"]:
    """The same, padded with zeros."""
    return np.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, room - ids.shape[-1])])
