"""Raw caption-picture data behind one interface: `emblems`, or a folder of pictures.

A folder holds a `captions.jsonl`, one JSON object per line:

    {"file": "cats/1.png", "caption": "a cat", "licence": "CC0-1.0", "source": "my camera"}

`file` is relative to the folder; `licence` and `source` may be missing. So may `mask`, a grey
picture like `file` that is white where errors of the image tokenizer count most
(`vqgan_loss.region`).
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.shapes import UInt8
from cm3jax.tokenizers.image import load_picture

CAPTIONS = "captions.jsonl"
_HELD_BACK = 50  # every so-many-th line of a folder is for validation


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """One document before tokenisation."""

    key: str
    segments: tuple[str | np.ndarray, ...]
    """Texts and uint8 [S, S, 3] pictures in order."""
    kind: str
    subjects: tuple[str, ...]
    """Names of what it is about; documents that share one are about the same thing."""
    source: str
    licence: str
    held_out: bool = False
    """Of a bank: shown at generation alone, never beside a training record."""


@runtime_checkable
class Source(Protocol):
    """Records by number; reading one is independent of all others."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> RawRecord:
        """Record `index`, from 0; `UserError` if it cannot be read."""
        ...


@runtime_checkable
class MaskedSource(Source, Protocol):
    """A source that knows which parts of its pictures matter."""

    def masks(self, index: int) -> tuple[UInt8[np.ndarray, "S S"], ...]:
        """A mask for each picture of a record: 255 where pixels matter most, 0 where they don't."""
        ...


def open_source(
    data: DataConfig, split: str, seed: int, progress: Callable[[int, int], None] | None = None
) -> Source:
    """The records of a split, `train`, `validation` or `bank`.

    `emblems` is written under `data.raw` first, unless it is there; `progress` is told (documents
    written, documents in all). A folder gives its first `data.records` lines but every 50th for
    training and for the bank, and every 50th for validation.
    """
    if split not in ("train", "validation", "bank"):
        raise ValueError(f"no split {split!r}; there are train, validation and bank")
    if data.source == "emblems":
        return _emblems(data, split, seed, progress)
    return FolderSource(epath.Path(data.source), data, split)


def _emblems(
    data: DataConfig, split: str, seed: int, progress: Callable[[int, int], None] | None
) -> Source:
    # TFDS takes a second to import, and folders do without.
    from cm3jax.data.emblems.builder import EmblemsConfig, prepare

    config = EmblemsConfig(
        records=data.records, emblems=data.emblems, seed=seed, size=data.image_size
    )
    return EmblemsSource(prepare(data.raw, config, progress).as_data_source(split))


class EmblemsSource:
    """A split of the prepared `emblems`."""

    def __init__(self, records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> RawRecord:
        record = self._records[index]
        parts = {"t": iter(record["texts"]), "i": iter(record["images"])}
        segments = tuple(next(parts[mark]) for mark in record["order"].decode())
        return RawRecord(
            key=record["key"].decode(),
            segments=tuple(s.decode() if isinstance(s, bytes) else s for s in segments),
            kind=record["kind"].decode(),
            subjects=tuple(name.decode() for name in record["emblems"]),
            source=record["source"].decode(),
            licence=record["licence"].decode(),
            held_out=record["kind"] == b"memory",
        )

    def masks(self, index: int) -> tuple[UInt8[np.ndarray, "S S"], ...]:
        """Things are white, the background is black."""
        from cm3jax.data.emblems.annotations import annotate
        from cm3jax.data.emblems.scene import Scene

        record = self._records[index]
        if not len(record["images"]):
            return ()
        key, size = record["key"].decode(), len(record["images"][0])
        scenes = (Scene.from_json(scene.decode()) for scene in record["scenes"])
        things = (annotate(scene, key, size).segmentation > 0 for scene in scenes)
        return tuple(np.where(thing, np.uint8(255), np.uint8(0)) for thing in things)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of `captions.jsonl`, numbered from 1."""

    number: int
    file: str
    caption: str
    licence: str
    source: str
    mask: str
    """Empty for none."""


class FolderSource:
    """A split of a folder of pictures. Pictures are read, cut square and resized on access."""

    def __init__(self, folder: epath.Path, data: DataConfig, split: str):
        self._folder = folder
        self._size = data.image_size
        lines = _lines(folder)
        held_back = lines[_HELD_BACK - 1 :: _HELD_BACK]
        if split == "validation":
            self._lines = held_back
        else:
            kept = {line.number for line in held_back}
            self._lines = [line for line in lines if line.number not in kept][: data.records]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> RawRecord:
        line = self._lines[index]
        picture = self._picture(line, line.file)
        return RawRecord(
            key=line.file,
            segments=(line.caption, picture),
            kind="pair",
            subjects=(),
            source=line.source,
            licence=line.licence,
        )

    def masks(self, index: int) -> tuple[UInt8[np.ndarray, "S S"], ...]:
        """The line's `mask`; black without one."""
        line = self._lines[index]
        if not line.mask:
            return (np.zeros((self._size, self._size), np.uint8),)
        return (self._picture(line, line.mask)[..., 0],)

    def _picture(self, line: _Line, file: str) -> UInt8[np.ndarray, "S S 3"]:
        try:
            return load_picture(self._folder / file, self._size)
        except UserError as error:
            raise UserError(f"{self._folder / CAPTIONS} line {line.number}: {error}") from None


def _lines(folder: epath.Path) -> list[_Line]:
    path = folder / CAPTIONS
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"data.source={folder} is neither `emblems` nor a folder with a {CAPTIONS}; give one."
        ) from None
    lines = [_line(path, *numbered) for numbered in enumerate(text.splitlines(), 1)]
    if not lines:
        raise UserError(f"{path} is empty; write one JSON object per picture.")
    return lines


def _line(path: epath.Path, number: int, text: str) -> _Line:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number} is not JSON ({error.msg}); mend it.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} line {number} is not a JSON object; write one per line.")
    fields = {"licence": "unknown", "source": str(path.parent)} | value
    for name in ("file", "caption", "licence", "source"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise UserError(f"{path} line {number} has no text in {name!r}; give it one.")
    texts = (fields[name] for name in ("file", "caption", "licence", "source"))
    return _Line(number, *texts, str(fields.get("mask") or ""))
