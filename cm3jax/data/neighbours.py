"""The neighbours of records in a bank, as training is shown them."""

import dataclasses

import numpy as np

from cm3jax.config import RetrievalConfig
from cm3jax.data.tokenize import Tokenised, encoder_parts
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import content_hash
from cm3jax.retrieval.clauses import clauses
from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.retrieval.index import training_index
from cm3jax.retrieval.select import NONE, Choice, drop_pieces, select_documents, side_by_side
from cm3jax.shapes import Bool, Float, Int


class Neighbourhood:
    """Finds the candidates of records in a bank: neither held out, nor the record itself, nor
    another document with its image."""

    def __init__(self, config: RetrievalConfig, seed: int, encoder: ClipEncoder, bank: Bank):
        self.bank = bank
        self._config, self._seed = config, seed
        self._encoder = encoder
        self._rows = np.flatnonzero(~bank.held_out)
        self._index = training_index(bank, self._config)
        self._pair = bank.has_text & bank.has_image
        self._order = np.argsort(bank.content, kind="stable")
        self._contents = bank.content[self._order]

    def candidates(
        self, items: list[Tokenised], records: Int[np.ndarray, " M"]
    ) -> list[tuple[Choice, Choice]]:
        """Per query view, the candidates by text and by image; a missing part has none.

        An image has one view, which counts for all: its patches are not dropped.
        """
        parts = [encoder_parts(item.raw, self._encoder) for item in items]
        exclude = self._exclude(items)
        with_text = np.asarray([text is not None for text, _ in parts], bool)
        with_image = np.asarray([image is not None for _, image in parts], bool)
        images = [image for _, image in parts if image is not None]
        by_image = self._find(self._encoder.encode_images(images), with_image, exclude)
        texts = [self._clauses(text) for text, _ in parts if text is not None]
        pieces = [self._encoder.tokenizer.encode(part) for text in texts for part in text]
        counts = [len(text) for text in texts]
        askers = np.repeat(records[with_text], counts)
        chosen = []
        for view in range(self._config.views):
            share = self._config.query_dropout
            seen = drop_pieces(pieces, askers, view, share, self._seed)
            by_text = self._find(self._encoder.encode_pieces(seen), with_text, exclude, counts)
            chosen.append((by_text, by_image))
        return chosen

    def leaks(self, items: list[Tokenised]) -> dict[str, str]:
        """Keys of records that are in the bank too, exactly, nearly or by their image, each with
        the key of the bank's document.
        """
        if not items or not len(self.bank):
            return {}
        parts = [encoder_parts(item.raw, self._encoder) for item in items]
        found = self._index.search(self._encoder.encode_documents(parts), 1)
        close = np.where(found.scores > self._config.duplicate_cut, self._rows[found.ids], NONE)
        leaks = {}
        for item, near in zip(items, close, strict=True):
            rows = [*self._own(item), *near[near != NONE]]
            if rows:
                leaks[item.raw.key] = self.bank.meta(int(rows[0])).key
        return leaks

    def _clauses(self, text: str) -> list[str]:
        return clauses(text) if self._config.clauses else [text]

    def _own(self, item: Tokenised) -> Int[np.ndarray, " R"]:
        """Rows of the bank that have the record's very ids or one of its images."""
        content = np.uint64(content_hash(item.ids))
        first = np.searchsorted(self._contents, content, "left")
        copies = self._order[first : np.searchsorted(self._contents, content, "right")]
        return np.union1d(copies, self.bank.showing(item.raw.pictures))

    def _exclude(self, items: list[Tokenised]) -> Int[np.ndarray, "M X"]:
        own = [self._own(item) for item in items]
        exclude = np.full((len(items), max([1, *map(len, own)])), NONE)
        for row, rows in enumerate(own):
            exclude[row, : len(rows)] = rows
        return exclude

    def _find(
        self,
        vectors: Float[np.ndarray, "B E"],
        has: Bool[np.ndarray, " M"],
        exclude: Int[np.ndarray, "M X"],
        counts: list[int] | None = None,
    ) -> Choice:
        """Candidates of the records that have the query, `NONE` for the others.

        `counts` says how many of the vectors belong to each of them; one if left out.
        """
        counts = counts or [1] * len(vectors)
        found = self._index.search(vectors, self._config.pool)
        found = side_by_side(dataclasses.replace(found, ids=self._rows[found.ids]), counts)
        choice = select_documents(
            found,
            self.bank.vectors,
            self._pair,
            self._config,
            exclude[has],
            queries=max([1, *counts]),
        )
        ids = np.full((len(has), self._config.candidates), NONE, np.int64)
        scores = np.zeros(ids.shape, np.float32)
        ids[has], scores[has] = choice.ids, choice.scores
        return Choice(ids, scores, choice.counts)
