"""Raw caption-image data behind one interface. `data.source` is one of

emblems             the miniature's images, generated under `data.raw`
emoji               images of four artists, drawn under `data.raw` from archives that are there
a folder            with a `captions.jsonl`, one JSON object per line, and the images:
                    {"file": "cats/1.png", "caption": "a cat", "subjects": ["cat"],
                    "licence": "CC0-1.0", "source": "my camera"}; all but the first two may be
                    missing, and so may `split` (`train`, `validation` or `bank`) and `mask`, a grey
                    image that is white where errors of the image tokenizer count most
                    (`vqgan_loss.region`). It may also be called `metadata.jsonl`, with `file_name`
                    and `text`, as the `datasets` library has it, there or in each folder below
                    (`train`, `validation`)
a folder            with a `documents.jsonl` (or the path of such a file): interleaved
                    documents, each a list of {"text": ...} and {"image": "cats/1.png"}
a folder            of tar shards, as webdataset and img2dataset write them
a folder            of parquet files, with images in them or beside them
a folder            of images only: `a.txt` beside `a.png` is its caption, and a folder in it is
                    named by what its images show
tfds:NAME#SPLIT     a dataset of tensorflow-datasets below `data.raw`; SPLIT is train if left out
"""

import bisect
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.config import DataConfig
from cm3jax.data.changes import Made
from cm3jax.data.quality import require_quality
from cm3jax.data.readers.items import (
    BadRecord,
    RawItem,
    Reader,
    RefusedByRule,
    decode_item,
    decode_texts,
)
from cm3jax.data.readers.opening import open_readers
from cm3jax.data.splits import split_records
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.shapes import Int, UInt8
from cm3jax.tokenizers.image_tokenizer import load_with_size

GENERATED = ("emblems", "emoji")
"""Sources that are functions of the options, written under `data.raw`."""
_FIRST = 100
"""Records of which `ItemSource.columns` tells."""


@dataclasses.dataclass(frozen=True, eq=False)
class RawRecord:
    """One document before tokenisation."""

    key: str
    segments: tuple[str | np.ndarray, ...]
    """Texts and uint8 [S, S, 3] images in order."""
    kind: str
    subjects: tuple[str, ...]
    """Names of what it is about; documents that share one are about the same thing."""
    source: str
    licence: str
    held_out: bool = False
    """Whether a bank's document is shown at generation only, never beside a training record."""
    hash: str = ""
    """Hash of the segments' content."""
    looks: tuple[str, ...] = ()
    """Finer names than subjects, where the source knows them: what it is about as it looks there.
    The retrieval encoder then learns to find the same look first."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Identities of its images, under whatever name and caption: hashes of their pixels."""
        return tuple(digest(part) for part in self.segments if not isinstance(part, str))


@runtime_checkable
class Source(Protocol):
    """Records by number; reading one is independent of all others."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> RawRecord:
        """Record `index`, from 0; `BadRecord` if it can't be read or is refused, `IndexError`
        outside."""
        ...


@runtime_checkable
class TextSource(Source, Protocol):
    """A source that knows a record's texts without its images."""

    def texts(self, index: int) -> tuple[str, ...]:
        """The texts of a record, under the same rules but without decoding its images."""
        ...


@runtime_checkable
class DatedSource(Source, Protocol):
    """A source whose records may change between two readings."""

    def made(self, span: range) -> list[Made]:
        """What some records are read from: another state when that changes."""
        ...


@runtime_checkable
class MaskedSource(Source, Protocol):
    """A source that knows which parts of its images matter."""

    def masks(self, index: int) -> tuple[UInt8[np.ndarray, "S S"], ...]:
        """A mask for each image of a record: 255 where pixels matter most, 0 where they don't."""
        ...


def open_source(
    data: DataConfig, split: str, seed: int, progress: Callable[[int, int], None] | None = None
) -> TextSource:
    """The records of a split, `train`, `validation` or `bank`.

    `emblems` and `emoji` are written under `data.raw` first, unless they are there; `progress` is
    told (documents written, documents in all). What has no splits is split as
    `cm3jax.data.splits` says. Raises `UserError` if there is nothing to read.
    """
    if split not in ("train", "validation", "bank"):
        raise ValueError(f"no split {split!r}; there are train, validation and bank")
    if data.source == "emblems":
        return _emblems(data, split, seed, progress)
    if data.source == "emoji":
        return _emoji(data, split, seed, progress)
    return ItemSource(open_readers(data), data, split, seed)


def _emblems(
    data: DataConfig, split: str, seed: int, progress: Callable[[int, int], None] | None
) -> TextSource:
    # TFDS takes a second to import, and folders do without.
    from cm3jax.emblems.builder import EmblemsConfig, build_dataset

    config = EmblemsConfig(
        records=data.records, emblems=data.emblems, seed=seed, size=data.image_size
    )
    records = build_dataset(data.raw, config, progress).as_data_source(split)
    return EmblemsSource(records, data)


def _emoji(
    data: DataConfig, split: str, seed: int, progress: Callable[[int, int], None] | None
) -> TextSource:
    from cm3jax.emoji.builder import build_emoji

    builder = build_emoji(data.raw, data.records, seed, data.image_size, progress)
    return EmojiSource(builder.as_data_source(split), data)


def _require_quality(record: RawRecord, data: DataConfig) -> RawRecord:
    """The generated record; `RefusedByRule` where a quality rule leaves it out."""
    pictures = [part for part in record.segments if not isinstance(part, str)]
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    try:
        require_quality(data, record.licence, _texts(record), sizes)
    except ValueError as error:
        raise RefusedByRule(record.key, str(error)) from None
    return record


def _texts(record: RawRecord) -> tuple[str, ...]:
    return tuple(part for part in record.segments if isinstance(part, str))


def _drawn_record(
    record: Mapping[str, Any],
    segments: tuple[str | np.ndarray, ...],
    subjects: Iterable[bytes],
    looks: tuple[str, ...] = (),
) -> RawRecord:
    """A record of a dataset that this project draws, from the features that all of them have."""
    return RawRecord(
        key=record["key"].decode(),
        segments=segments,
        hash=digest(*segments),
        kind=record["kind"].decode(),
        subjects=tuple(name.decode() for name in subjects),
        source=record["source"].decode(),
        licence=record["licence"].decode(),
        held_out=record["kind"] == b"memory",
        looks=looks,
    )


class EmblemsSource:
    """A split of the prepared `emblems`."""

    def __init__(self, records, data: DataConfig):
        self._records, self._data = records, data

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> RawRecord:
        record = self._records[index]
        parts = {"t": iter(record["texts"]), "i": iter(record["images"])}
        segments = tuple(next(parts[mark]) for mark in record["order"].decode())
        segments = tuple(s.decode() if isinstance(s, bytes) else s for s in segments)
        return _require_quality(_drawn_record(record, segments, record["emblems"]), self._data)

    def texts(self, index: int) -> tuple[str, ...]:
        """The texts of a record, under the same rules."""
        return _texts(self[index])

    def masks(self, index: int) -> tuple[UInt8[np.ndarray, "S S"], ...]:
        """Things are white, the background is black."""
        from cm3jax.emblems.annotations import annotate
        from cm3jax.emblems.scene import Scene

        record = self._records[index]
        if not len(record["images"]):
            return ()
        key, size = record["key"].decode(), len(record["images"][0])
        scenes = (Scene.from_json(scene.decode()) for scene in record["scenes"])
        things = (annotate(scene, key, size).segmentation > 0 for scene in scenes)
        return tuple(np.where(thing, np.uint8(255), np.uint8(0)) for thing in things)


class EmojiSource:
    """A split of the prepared `emoji`."""

    def __init__(self, records, data: DataConfig):
        self._records, self._data = records, data

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> RawRecord:
        from cm3jax.emoji.scene import EmojiScene

        record = self._records[index]
        segments = (record["text"].decode(), record["image"])
        things = EmojiScene.from_json(record["scene"].decode()).things
        looks = tuple(f"{one.noun}, {one.style}, {one.size}" for one in things)
        raw = _drawn_record(record, segments, record["subjects"], looks)
        return _require_quality(raw, self._data)

    def texts(self, index: int) -> tuple[str, ...]:
        """The record's caption, under the same rules."""
        return _texts(self[index])


class ItemSource:
    """A split of raw data that readers give.

    Images are read, cut square and resized on access; nothing of them is kept.
    """

    def __init__(self, readers: Sequence[Reader], data: DataConfig, split: str, seed: int):
        self._readers, self._data = readers, data
        self._first = list(itertools.accumulate(map(len, readers), initial=0))
        splits = split_records(readers, data, seed)
        self._numbers: Int[np.ndarray, " M"] = getattr(splits, split)
        self._bank_only = np.isin(self._numbers, splits.bank_only)
        self.note = ""
        """What a user should know of the split."""
        if splits.left_out:
            self.note = (
                f"a sample of {data.records} of the {data.records + splits.left_out} records of "
                f"{data.source} that are for training; a larger data.records takes more"
            )

    def columns(self) -> set[str]:
        """The names of what else is known of its first records, for the rules that read it."""
        found: set[str] = set()
        for index in range(min(len(self), _FIRST)):
            with contextlib.suppress(BadRecord):
                found |= self._item(index).columns.keys()
        return found

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> RawRecord:
        item = self._item(index)
        segments, content = decode_item(item, self._data)
        kinds = [isinstance(segment, str) for segment in segments]
        return RawRecord(
            key=item.key,
            segments=segments,
            kind="pair" if kinds == [True, False] else "interleaved",
            subjects=item.subjects,
            source=item.source,
            licence=item.licence,
            held_out=bool(self._bank_only[index]),
            hash=content,
        )

    def texts(self, index: int) -> tuple[str, ...]:
        """The texts of a record, under the same rules but without decoding its images."""
        return decode_texts(self._item(index), self._data)

    def made(self, span: range) -> list[Made]:
        """What some records are read from."""
        return [reader.made(place) for reader, place in map(self._place, span)]

    def masks(self, index: int) -> tuple[UInt8[np.ndarray, "S S"], ...]:
        """The line's `mask`; black without one, `BadRecord` for one that can't be read."""
        item, size = self._item(index), self._data.image_size
        mask = item.columns.get("mask")
        if not isinstance(mask, epath.Path):
            return (np.zeros((size, size), np.uint8),)
        try:
            (picture,) = (part for part in item.parts if isinstance(part, epath.Path))
            return (load_with_size(mask, size, picture).pixels[..., 0],)
        except UserError as error:
            raise BadRecord(item.key, f"{item.where}: {error}") from None

    def _item(self, index: int) -> RawItem:
        reader, place = self._place(index)
        return reader.item(place)

    def _place(self, index: int) -> tuple[Reader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} is outside the {len(self)}")
        number = int(self._numbers[index])
        reader = bisect.bisect_right(self._first, number) - 1
        return self._readers[reader], number - self._first[reader]
