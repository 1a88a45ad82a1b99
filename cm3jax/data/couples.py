"""Batches for the retrieval encoder: records, each with another record of the same subject."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from cm3jax import draws
from cm3jax.config import ClipConfig, Experiment
from cm3jax.data.pipeline import HostBatch, Position, RecordStream
from cm3jax.data.sources import Source
from cm3jax.data.usable import usable
from cm3jax.errors import UserError
from cm3jax.files import digest
from cm3jax.retrieval.clip import fit, text_and_image, text_length, text_rows
from cm3jax.retrieval.select import drop_pieces
from cm3jax.shapes import Array, Int, UInt8
from cm3jax.tokenizers.text import TextTokenizer

AnyArray = Array | np.ndarray
NO_SUBJECT = -1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["records", "subjects", "texts", "images"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Couples:
    """Rows of two documents: one that asks, and its partner, another of the same subject (or, for
    one without a subject, another without)."""

    records: Int[AnyArray, "B 2"]
    """Numbers of the two records, equal where no other shares the subject."""
    subjects: Int[AnyArray, "B 2 I"]
    """What each of them shows, as numbers; `NO_SUBJECT` as padding."""
    texts: Int[AnyArray, "B 2 L"]
    """Their texts as the encoder's `text_rows`; of some that ask, pieces are dropped."""
    images: UInt8[AnyArray, "B 2 Y X 3"]
    """Their pictures."""


class Records:
    """The records of a source that have a text and a picture, in memory, grouped by subject.

    Raises `UserError` when there is none.
    """

    def __init__(self, source: Source, tokenizer: TextTokenizer, config: ClipConfig):
        texts, images, names = [], [], []
        for _, record in usable(source, source.__getitem__):
            text, image = text_and_image(record.segments)
            if text and image is not None:
                texts.append(tokenizer.encode(text))
                images.append(fit(image, config))
                names.append(record.subjects)
        if not texts:
            raise UserError("the source has no record with a text and a picture; mend data.source.")
        self.texts: Sequence[list[int]] = texts
        self.images: UInt8[np.ndarray, "M Y X 3"] = np.stack(images)
        self._group(names)

    def __len__(self) -> int:
        return len(self.texts)

    def _group(self, names: Sequence[Sequence[str]]) -> None:
        """Number the subjects, list the records of each, and say where in the list each stands.

        Records without a subject are grouped together: they have partners, to whom they owe
        nothing.
        """
        numbers: dict[str, int] = {}
        members = collections.defaultdict(list)
        shape = (len(names), max(1, *map(len, names)))
        self.subjects = np.full(shape, NO_SUBJECT, np.int32)
        self._places = np.zeros(shape, np.int64)
        for record, subjects in enumerate(names):
            for slot, name in enumerate(subjects):
                self.subjects[record, slot] = numbers.setdefault(name, len(numbers))
            for slot, group in enumerate(self.subjects[record, : len(subjects) or 1].tolist()):
                self._places[record, slot] = len(members[group])
                members[group].append(record)
        groups = [members[group] for group in range(NO_SUBJECT, len(numbers))]
        self._counts = np.array([len(group) for group in groups], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._members = np.array([record for group in groups for record in group], np.int64)

    def partners(
        self, records: Int[np.ndarray, " B"], seed: int, epoch: int
    ) -> Int[np.ndarray, " B"]:
        """Another record that shares a random subject of each; itself where there is none."""
        words = draws.bits(np, seed, epoch, records, draws.Stream.DOCUMENTS, 2)
        owned = (self.subjects[records] != NO_SUBJECT).sum(1)
        slots = draws.below(np, words[:, 0], owned).astype(np.int64)
        groups = self.subjects[records, slots] - NO_SUBJECT
        counts, starts = self._counts[groups], self._starts[groups]
        # One of the others in the circle; a circle of one leads back.
        ahead = 1 + draws.below(np, words[:, 1], counts - 1).astype(np.int64)
        return self._members[starts + (self._places[records, slots] + ahead) % counts]


@dataclasses.dataclass(frozen=True)
class CoupleStream:
    """Shuffled couples: partners and dropped text pieces differ from epoch to epoch."""

    experiment: Experiment
    records: Records
    process_index: int = 0
    process_count: int = 1

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of texts, pictures and subjects."""
        every = self.records
        return {"records": digest(repr(every.texts), every.images, every.subjects)}

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Batches of `Couples` from `position` on."""
        stream = RecordStream(
            {"record": np.arange(len(self.records))},
            self.experiment.data.batch,
            self.experiment.seed,
            self.process_index,
            self.process_count,
        )
        for batch in stream.batches(position):
            couples = self._couples(batch.data["record"], position.epoch)
            yield dataclasses.replace(batch, data=couples)
            position = batch.next

    def _couples(self, records: Int[np.ndarray, " B"], epoch: int) -> Couples:
        config, every = self.experiment, self.records
        both = np.stack([records, every.partners(records, config.seed, epoch)], axis=1)
        # One text in four lacks pieces, another one in each epoch.
        views = np.where((records + epoch) % 4 == 0, 1 + epoch, 0)
        share = config.retrieval.query_dropout
        asking = [every.texts[record] for record in records]
        asking = drop_pieces(asking, records, views, share, config.seed)
        texts = zip(asking, [every.texts[partner] for partner in both[:, 1]], strict=True)
        length = text_length(max(map(len, every.texts)), config.clip)
        rows = text_rows(list(itertools.chain(*texts)), config.clip, length)
        return Couples(
            records=both.astype(np.int32),
            subjects=every.subjects[both],
            texts=rows.reshape(len(records), 2, length),
            images=every.images[both],
        )
