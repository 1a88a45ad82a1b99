"""One raw record as its file holds it, and what makes it fit to be prepared.

Raw data is dirty. What is wrong with a record is found here, said in half a sentence and raised as
`BadRecord`, so that a preparation lists it and goes on.
"""

import dataclasses
import json
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.files import digest
from cm3jax.tokenizers.image import Picture, decode_picture

MOST_BYTES = 1 << 28
"""Bytes of the largest picture file, archive member or line of text that is read."""
_OVERRIDES = (
    "\u202d\u202e"  # they make text read backwards, which honest right-to-left text never needs
)
_WATERMARK = ("watermark", "pwatermark")
_UNSAFE = ("unsafe", "punsafe", "nsfw")
_WORDS = {"UNLIKELY": 0.0, "UNSURE": 0.5, "NSFW": 1.0}  # LAION's column


class BadRecord(UserError):
    """A record that can't be prepared: its key, and the reason."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


@dataclasses.dataclass(frozen=True)
class RawItem:
    """A record with its pictures still encoded."""

    key: str
    parts: tuple[str | bytes | epath.Path, ...]
    """Texts, and pictures as the contents or the paths of their files, in order."""
    source: str
    licence: str
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else is known, with names in lower case: `punsafe`, `pwatermark`."""
    where: str = ""
    """Where it stands, for messages, if its key does not say."""


@runtime_checkable
class Reader(Protocol):
    """The records of one file or folder, by number."""

    def __len__(self) -> int:
        """Number of records, bad ones included."""
        ...

    def item(self, place: int) -> RawItem:
        """The record at a place; `BadRecord` if its file does not hold it whole."""
        ...


def decode(item: RawItem, data: DataConfig) -> tuple[tuple[str | np.ndarray, ...], str]:
    """A record's texts and uint8 [S, S, 3] pictures, S = `data.image_size`, and their hash.

    Raises `BadRecord` for what can't be read and for what the quality rules of `data` refuse.
    """
    try:
        segments = [_decoded(part, data.image_size) for part in item.parts]
        if not segments:
            raise ValueError("it is empty")
        _require_quality(item, segments, data)
    except ValueError as error:
        reason = f"{item.where}: {error}" if item.where else str(error)
        raise BadRecord(item.key, reason) from None
    parts = tuple(s.pixels if isinstance(s, Picture) else s for s in segments)
    return parts, digest(*parts)


def join_inside(folder: epath.Path, name: str) -> epath.Path:
    """A file below a folder; `ValueError` for a name that leads out of it."""
    require_inside(name)
    return folder / name


def require_inside(name: str) -> None:
    """Raise `ValueError` for a relative name that is absolute, climbs by `..`, or holds a NUL."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"its file name {name!r} leads out of the folder")
    if "\0" in name or not path.name:
        raise ValueError(f"its file name {name!r} is no name of a file")


def parse_object(line: bytes) -> Any:
    """The JSON value of a line; `ValueError` says why there is none."""
    if len(line) >= MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES} bytes")
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("is not JSON (nested too deep)") from None


def _decoded(part: str | bytes | epath.Path, size: int) -> str | Picture:
    if isinstance(part, str):
        return _text(part)
    if isinstance(part, bytes):
        return decode_picture(part, size)
    try:
        return decode_picture(_content(part), size)
    except ValueError as error:
        raise ValueError(f"{part.name[:100]}: {error}") from None


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("it has no caption")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("its text holds half a surrogate pair") from None
    for character in text:
        if character in _OVERRIDES or (
            unicodedata.category(character) == "Cc" and character not in "\t\n\r"
        ):
            raise ValueError(f"its text holds the control character U+{ord(character):04X}")
    return text


def _content(path: epath.Path) -> bytes:
    try:
        size = path.stat().length
        if size > MOST_BYTES:
            raise ValueError(f"it has {size} bytes, more than {MOST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"it can't be read ({type(error).__name__})") from None


def _require_quality(item: RawItem, segments: list[str | Picture], data: DataConfig) -> None:
    if data.licences and item.licence not in data.licences:
        raise ValueError(f"its licence {item.licence!r} is not among data.licences")
    for name, most in ((_WATERMARK, data.max_watermark), (_UNSAFE, data.max_unsafe)):
        score = _score(item.columns, name)
        if score > most:
            raise ValueError(f"its {name[0]} score {score:g} is above {most:g}")
    for segment in segments:
        if isinstance(segment, Picture):
            _require_picture(segment, data)
    words = sum(len(s.split()) for s in segments if isinstance(s, str))
    if any(isinstance(s, str) for s in segments) and words < data.min_words:
        raise ValueError(f"its text has {words} words, fewer than data.min_words={data.min_words}")
    if data.max_words and words > data.max_words:
        raise ValueError(f"its text has {words} words, more than data.max_words={data.max_words}")


def _require_picture(picture: Picture, data: DataConfig) -> None:
    short, long = sorted((picture.width, picture.height))
    size = f"the picture has {picture.width}x{picture.height} pixels"
    if short < data.min_side:
        raise ValueError(f"{size}, a side below data.min_side={data.min_side}")
    if data.max_aspect and long > data.max_aspect * short:
        raise ValueError(f"{size}, longer than data.max_aspect={data.max_aspect:g} allows")


def _score(columns: Mapping[str, Any], names: tuple[str, ...]) -> float:
    """The first of the columns as a number from 0 to 1; 0 where none is there."""
    for name in names:
        value = columns.get(name)
        if isinstance(value, str):
            value = _WORDS.get(value.upper())
        if isinstance(value, bool | int | float):
            return float(value)
    return 0.0
