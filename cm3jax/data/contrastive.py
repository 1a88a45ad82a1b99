"""Batches for the retrieval encoder: records, each with another record of the same subject."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, no_type_check

import jax
import numpy as np

from cm3jax.config import ClipConfig, DataConfig
from cm3jax.data.ahead import ahead
from cm3jax.data.partners import with_partners
from cm3jax.data.pipeline import (
    HostBatch,
    Position,
    RecordStream,
    marks_of_records,
    with_epochs,
)
from cm3jax.data.scan import IN_MEMORY, RecordPictures, scan
from cm3jax.data.sources import ItemSource, RawRecord, Source
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.retrieval.clip_encoder import fit_picture, text_and_image, text_length, text_rows
from cm3jax.retrieval.select import drop_pieces
from cm3jax.sequence import prng
from cm3jax.shapes import AnyArray, Int, UInt8
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

NO_SUBJECT = -1


@no_type_check  # shapes are in its fields where a step is compiled without data
@partial(
    jax.tree_util.register_dataclass,
    data_fields=["records", "same", "subjects", "texts", "images"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Couples:
    """Rows of two documents: one that asks, and its partner, another of the same subject (or, for
    one without a subject, another without)."""

    records: Int[AnyArray, "B 2"]
    """Numbers of the two records, equal where no other shares the subject."""
    same: Int[AnyArray, "B 2 2"]
    """Numbers of their images and of their captions, equal for equal ones: of an image with
    several captions, each is as right as the others."""
    subjects: Int[AnyArray, "B 2 I"]
    """What each of them shows, as numbers; `NO_SUBJECT` as padding."""
    texts: Int[AnyArray, "B 2 L"]
    """Their texts as the encoder's `text_rows`; of some that ask, pieces are dropped."""
    images: UInt8[AnyArray, "B 2 Y X 3"]
    """Their images."""


class CaptionedRecords:
    """The records of a source that have a text and an image, grouped by look where the source
    knows looks, else by subject.

    Texts are in memory, images only where all of them fit (`scan.IN_MEMORY`). Records that can't
    be read or are refused are left out. Raises `UserError` when none is left.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        config: ClipConfig,
        in_memory: int = IN_MEMORY,
    ):
        found = scan(source, _captioned, lambda record: _picture(record, config), in_memory)
        note = source.note if isinstance(source, ItemSource) else ""
        self.source_notes = [*filter(None, [note]), *found.notes]
        """What a user should know of the split: how it was cut, and what was left out."""
        if not found.kept:
            raise UserError(
                "the source has no record with a text and an image; correct data.source."
            )
        self.texts: Sequence[list[int]] = [tokenizer.encode(one.text) for one in found.kept]
        self.pictures: RecordPictures = found.pictures
        self.picture_marks = [one.picture for one in found.kept]
        """Hashes of the images."""
        names, captions = ([getattr(one, f) for one in found.kept] for f in ("subjects", "text"))
        numbers = [_numbered(self.picture_marks), _numbered(captions)]
        self.same: Int[np.ndarray, "M 2"] = np.stack(numbers, axis=1)
        """As `Couples.same`."""
        self._group(with_partners(names, captions, self.picture_marks, config.partners))

    def __len__(self) -> int:
        return len(self.texts)

    def _group(self, names: Sequence[Sequence[str]]) -> None:
        """Number the subjects and list the records of each, those of one image side by side.

        Of each record it is known where in the list it is, how many of its image are before it,
        and how many there are.
        Records without a subject are grouped together: they have partners, to whom they owe
        nothing.
        """
        numbers: dict[str, int] = {}
        members: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        shape = (len(names), max(1, *map(len, names)))
        self.subjects = np.full(shape, NO_SUBJECT, np.int32)
        for record, subjects in enumerate(names):
            for slot, name in enumerate(subjects):
                self.subjects[record, slot] = numbers.setdefault(name, len(numbers))
            for slot, group in enumerate(self.subjects[record, : len(subjects) or 1].tolist()):
                members[group].append((record, slot))
        self._places, self._before, self._alike = np.zeros((3, *shape), np.int64)
        for own in members.values():
            own.sort(key=lambda one: (self.same[one[0], 0], *one))
            places = enumerate(own)
            for _, run in itertools.groupby(places, lambda one: self.same[one[1][0], 0]):
                alike = list(run)
                for before, (place, at) in enumerate(alike):
                    self._places[at], self._before[at] = place, before
                    self._alike[at] = len(alike)
        groups = [members[group] for group in range(NO_SUBJECT, len(numbers))]
        self._counts = np.array([len(group) for group in groups], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._members = np.array([record for group in groups for record, _ in group], np.int64)

    @property
    def partnered(self) -> int:
        """How many records share a subject with another one."""
        shared = np.append(self._counts[1:] > 1, False)  # NO_SUBJECT comes last
        return int(shared[self.subjects].any(1).sum())

    def partners(
        self, records: Int[np.ndarray, " B"], seed: int, epoch: int
    ) -> Int[np.ndarray, " B"]:
        """Another record that shares a random subject of each: one with another image or, where
        all have its own, with another caption. Itself where there is none."""
        words = prng.bits(np, seed, epoch, records, prng.PrngStream.DOCUMENTS, 2)
        owned = (self.subjects[records] != NO_SUBJECT).sum(1)
        slots = prng.below(np, words[:, 0], owned).astype(np.int64)
        groups = self.subjects[records, slots] - NO_SUBJECT
        counts, starts = self._counts[groups], self._starts[groups]
        at = records, slots
        others = counts - self._alike[at]
        # One of the others in the circle, behind all of its image if there are any.
        passed = np.where(others > 0, self._alike[at] - self._before[at], 1)
        drawn = prng.below(np, words[:, 1], np.where(others > 0, others, counts - 1))
        ahead = passed + drawn.astype(np.int64)
        return self._members[starts + (self._places[at] + ahead) % counts]


def _numbered(values: Sequence[str]) -> Int[np.ndarray, " M"]:
    """Numbers of values from 0 in order of appearance, equal for equal ones."""
    first: dict[str, int] = {}
    return np.asarray([first.setdefault(value, len(first)) for value in values], np.int32)


class _Captioned(NamedTuple):
    """What is kept of a record."""

    text: str
    subjects: tuple[str, ...]
    picture: str


def _captioned(record: RawRecord) -> _Captioned | None:
    text, image = text_and_image(record.segments)
    if not text or image is None:
        return None
    return _Captioned(text, record.looks or record.subjects, record.pictures[0])


def _picture(record: RawRecord, config: ClipConfig) -> UInt8[np.ndarray, "Y X 3"]:
    _, image = text_and_image(record.segments)
    if image is None:
        raise ValueError(f"{record.key} has no image")
    return fit_picture(image, config)


@dataclasses.dataclass(frozen=True)
class CoupleStream:
    """Shuffled couples: partners and dropped text pieces differ from epoch to epoch.

    Images that are not in memory are read a few batches ahead.
    """

    records: CaptionedRecords
    data: DataConfig
    clip: ClipConfig
    seed: int
    query_dropout: float
    """As `retrieval.query_dropout`."""
    process_index: int = 0
    process_count: int = 1

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of texts, images and subjects, together and apart."""
        every = self.records
        parts = {
            "texts": digest(repr(every.texts)),
            "pictures": digest(*every.picture_marks),
            "subjects": digest(every.subjects),
        }
        whole = digest(repr(every.texts), *every.picture_marks, every.subjects)
        return marks_of_records(whole, len(every), parts)

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """Batches of `Couples` from `position` on."""
        stream = RecordStream(
            {"record": np.arange(len(self.records))},
            self.data.batch,
            self.seed,
            self.process_index,
            self.process_count,
        )
        epochs = with_epochs(stream.batches(position), position)
        if self.records.pictures.held is not None:
            yield from map(self._made, epochs)
        else:
            yield from ahead(epochs, self._made, self.data.threads)

    @property
    def notes(self) -> list[str]:
        """How many records have a partner, and how many were left out."""
        notes = [*self.records.source_notes]
        if self.clip.document_loss:
            notes.append(_partnered(self.records, self.clip))
        return notes

    def _made(self, drawn: tuple[HostBatch, int]) -> HostBatch:
        batch, epoch = drawn
        return dataclasses.replace(batch, data=self._couples(batch.data["record"], epoch))

    def _couples(self, records: Int[np.ndarray, " B"], epoch: int) -> Couples:
        every = self.records
        both = np.stack([records, every.partners(records, self.seed, epoch)], axis=1)
        # One text in four lacks pieces, another one in each epoch.
        views = np.where((records + epoch) % 4 == 0, 1 + epoch, 0)
        asking = [every.texts[record] for record in records]
        asking = drop_pieces(asking, records, views, self.query_dropout, self.seed)
        texts = zip(asking, [every.texts[partner] for partner in both[:, 1]], strict=True)
        length = text_length(max(map(len, every.texts)), self.clip)
        rows = text_rows(list(itertools.chain(*texts)), self.clip, length)
        images = every.pictures.take(both.reshape(-1))
        return Couples(
            records=both.astype(np.int32),
            same=every.same[both],
            subjects=every.subjects[both],
            texts=rows.reshape(len(records), 2, length),
            images=images.reshape(*both.shape, *images.shape[1:]),
        )


def _partnered(records: CaptionedRecords, config: ClipConfig) -> str:
    """What training says of the document loss."""
    if records.partnered:
        return f"{records.partnered} of {len(records)} records have a partner of their subject."
    return (
        f"warning: clip.document_loss={config.document_loss:g} has nothing to work on, since no "
        "record shares a subject with another one; give the records `subjects`, let "
        "clip.partners find partners by `captions`, `nearest` ones or `pictures`, or set it to 0."
    )
