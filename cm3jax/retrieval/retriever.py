"""Live retrieval: from texts and images to the documents of a bank that go in front of them."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cm3jax.config import RetrievalConfig
from cm3jax.errors import UserError
from cm3jax.io.texts import brief
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument, key_hash
from cm3jax.retrieval.clauses import clauses
from cm3jax.retrieval.clip_encoder import ClipEncoder, fit_picture
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.interface import Index, Neighbours
from cm3jax.retrieval.select import NONE, Choice, above_floor, select_documents, side_by_side
from cm3jax.shapes import Float, Int, RgbImage

Query = tuple[str | None, RgbImage | None]
"""A text, an image, or both."""


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """A document of the bank, found for a query."""

    id: int
    """Its row in the bank."""
    score: float
    """Inner product of its unit vector and the query's."""
    meta: BankDocument
    """The document."""

    @property
    def key(self) -> str:
        """Its unique name."""
        return self.meta.key

    @property
    def ids(self) -> Int[np.ndarray, " L"]:
        """Its vocabulary ids."""
        return self.meta.ids


@dataclasses.dataclass(frozen=True)
class Found:
    """What a query is shown."""

    documents: list[Retrieved]
    """Best first; of a text that asks clause by clause, in the order of the clauses that found
    them."""
    left_out: list[float]
    """Scores of the documents that the floor kept from the places that stayed empty, best first."""


class Retriever:
    """An encoder and the bank that it made, with the bank's index."""

    def __init__(self, encoder: ClipEncoder, bank: Bank, config: RetrievalConfig):
        self.encoder = encoder
        self.bank = bank
        self.config = config
        self._index: Index = open_index(bank, config.index, config.milvus)
        self._pair = bank.has_text & bank.has_image

    def with_encoder(self, encoder: ClipEncoder) -> "Retriever":
        """The same, with this one for the queries."""
        other = copy.copy(self)
        other.encoder = encoder
        return other

    def retrieve(
        self,
        queries: Sequence[Query],
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> list[list[Retrieved]]:
        """The documents that `search` finds for each query."""
        return [found.documents for found in self.search(queries, k, exclude, weights)]

    def search(
        self,
        queries: Sequence[Query],
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        weights: Mapping[int, float] | None = None,
        floor: float | None = None,
    ) -> list[Found]:
        """The `k` documents to show each query (its text, its image, or both).

        Modality and diversity count as in training; nothing is too relevant here (section 2.1), but
        what scores below `floor` (by default `config.relevance_floor`) is left out.
        `exclude` holds rows of the bank that a query must not get; the scores of the rows in
        `weights` are multiplied by theirs, which may lift a document over the floor but takes none
        below it. Fewer than `k` documents come back where the index's best `config.pool` have no
        more.
        """
        if not queries or not k:
            return [Found([], []) for _ in queries]
        floor = self.config.relevance_floor if floor is None else floor
        k = min(k, len(self.bank))
        excluded = _padded(exclude or [()] * len(queries))
        asked = [self._clauses(text, picture) for text, picture in queries]
        counts = [len(parts) for parts in asked]
        vectors = self.encoder.encode_documents([part for parts in asked for part in parts])
        every = self._index.search(vectors, max(self.config.pool, k) + excluded.shape[1])
        found = above_floor(every, floor)
        if weights:
            found = self._weigh(found, vectors, weights, floor)
        shown = self._retrieved(self._choose(found, counts, k, excluded))
        if all(len(own) == k for own in shown):
            return [Found(own, []) for own in shown]
        # What would have been shown without a floor.
        rest = self._choose(every, counts, k, excluded)
        below = [
            sorted(scores[(ids != NONE) & (scores < floor)].tolist(), reverse=True)
            for ids, scores in zip(rest.ids, rest.scores, strict=True)
        ]
        return [Found(own, low[: k - len(own)]) for own, low in zip(shown, below, strict=True)]

    def _choose(
        self, found: Neighbours, counts: Sequence[int], k: int, excluded: Int[np.ndarray, "B R"]
    ) -> Choice:
        """`k` of the neighbours for each query; `counts` says how many clauses each had."""
        lists, config = side_by_side(found, counts), dataclasses.replace(self.config, candidates=k)
        parts = (lists, self.bank.vectors, self._pair, config, excluded)
        return select_documents(*parts, cuts=False, queries=max(counts))

    def _retrieved(self, choice: Choice) -> list[list[Retrieved]]:
        """The chosen documents with what the bank knows of them."""
        return [
            [
                Retrieved(int(row), float(score), self.bank.meta(int(row)))
                for row, score in zip(rows, scores, strict=True)
                if row != NONE
            ]
            for rows, scores in zip(choice.ids, choice.scores, strict=True)
        ]

    def row(self, key: str) -> int:
        """The row of the document of that key; `UserError` if the bank has none."""
        for row in np.flatnonzero(self.bank.key_hashes == np.uint64(key_hash(key))):
            if self.bank.meta(int(row)).key == key:
                return int(row)
        raise UserError(
            f"the bank {self.bank.path} has no document {brief(key, 200)}; launch.index query "
            "names some."
        )

    def _weigh(
        self,
        found: Neighbours,
        vectors: Float[np.ndarray, "B E"],
        weights: Mapping[int, float],
        floor: float,
    ) -> Neighbours:
        """The neighbours and the weighed documents, which the index need not have found."""
        rows = np.asarray(list(weights), np.int64)
        factors = np.asarray(list(weights.values()), np.float32)
        plain = vectors @ self.bank.vectors[rows].T
        scores = (plain * factors).astype(np.float32)
        ids = np.where(np.isin(found.ids, rows), NONE, found.ids)
        weighed = np.where(np.maximum(plain, scores) < floor, NONE, rows)
        ids = np.concatenate([ids, weighed], 1)
        return Neighbours(ids, np.concatenate([found.scores, scores], 1))

    def _clauses(self, text: str | None, picture: RgbImage | None) -> list[Query]:
        """The queries to search with: the query itself or, if it is only a text, its clauses."""
        if picture is not None:
            picture = fit_picture(picture, self.encoder.config)
        if text is None or picture is not None or not self.config.clauses:
            return [(text, picture)]
        return [(clause, None) for clause in clauses(text)]


def _padded(rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "B R"]:
    """Rows of the bank as one array with at least one column, `NONE` where a list has no more."""
    widest = max(map(len, rows)) or 1
    return np.asarray([[*own, *[NONE] * (widest - len(own))] for own in rows], np.int64)
