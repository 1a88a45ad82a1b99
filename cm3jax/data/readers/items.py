"""One raw record as its file holds it, and the checks before it is prepared.

Raw data is dirty. What is wrong with a record is found here, said in half a sentence and raised as
`BadRecord`, so that a preparation lists it and goes on.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.config import DataConfig
from cm3jax.data.changes import Made
from cm3jax.data.quality import require_quality
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.texts import (
    MOST_BYTES,
    brief,
    clean_text,
    decode_text,
    leads_out,
    printable,
    read_regular,
    require_unicode,
    shorten,
)
from cm3jax.tokenizers.image_tokenizer import Picture, decode_picture, picture_size

CAPTIONS = ("caption", "text", "captions", "texts")
"""Fields that hold a record's text, in whatever file it is."""
_LONGEST_NAME = 1024


class BadRecord(UserError):
    """A record that can't be prepared: its key, and the reason.

    However large the record, the reason is short: manifests and reports keep every one.
    """

    def __init__(self, key: str, reason: str):
        self.key, self.reason = printable(key), printable(shorten(reason))
        super().__init__(f"{self.key}: {self.reason}")


class RefusedByRule(BadRecord):
    """A sound record that a quality rule of `data` leaves out."""


@dataclasses.dataclass(frozen=True)
class RawItem:
    """A record with its images still encoded."""

    key: str
    parts: tuple[str | bytes | epath.Path, ...]
    """Texts, and images as the contents or the paths of their files, in order."""
    source: str
    licence: str
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else is known, with names in lower case: `punsafe`, `pwatermark`."""
    where: str = ""
    """Where it is, for messages, if its key does not say."""
    subjects: tuple[str, ...] = ()
    """Names of what it is about; records that share one are about the same thing."""


class Facts(NamedTuple):
    """What decides a record's split, known without decoding it."""

    key: str
    """Its name, perhaps without what makes it unique; it begins with the names of its folders."""
    pictures: tuple[str, ...] = ()
    """Names of its images, equal for equal ones; empty where they are unknown."""
    subjects: tuple[str, ...] = ()
    split: str = ""
    """`train`, `validation` or `bank`, if it says."""
    usual: str = ""
    """The split that its file is named for, which counts where nothing else is said."""


@runtime_checkable
class Reader(Protocol):
    """The records of one file or folder, by number.

    Keys are unique: the second record of one name is `a.png#2`. A file that was written again since
    it was opened raises `UserError`.
    """

    def __len__(self) -> int:
        """Number of records, bad ones included."""
        ...

    def item(self, place: int) -> RawItem:
        """The record at a place; `BadRecord` if its file does not hold it whole."""
        ...

    def facts(self) -> Iterator[Facts]:
        """What is known of each record, bad ones included, in order."""
        ...

    def made(self, place: int) -> Made:
        """What the record at a place is read from."""
        ...


def decode_item(item: RawItem, data: DataConfig) -> tuple[tuple[str | np.ndarray, ...], str]:
    """A record's texts and uint8 [S, S, 3] images, S = `data.image_size`, and their hash.

    Raises `BadRecord` for what can't be read and `RefusedByRule` for what the quality rules of
    `data` leave out.
    """
    with _named(item):
        segments = [_decoded(part, data.image_size) for part in item.parts]
        if not segments:
            raise ValueError("it is empty")
    texts = [segment for segment in segments if isinstance(segment, str)]
    sizes = [(s.width, s.height) for s in segments if isinstance(s, Picture)]
    _require_quality(item, texts, sizes, data)
    parts = tuple(s.pixels if isinstance(s, Picture) else s for s in segments)
    return parts, digest(*parts)


def decode_texts(item: RawItem, data: DataConfig) -> tuple[str, ...]:
    """A record's texts, under the same rules as `decode_item`, without decoding an image.

    Images are not even opened unless a rule asks for their sides.
    """
    with _named(item):
        texts = [clean_caption(part) for part in item.parts if isinstance(part, str)]
        sizes = []
        if data.min_side > 0 or data.max_aspect:
            sizes = [picture_size(_content(p)) for p in item.parts if not isinstance(p, str)]
    _require_quality(item, texts, sizes, data)
    return tuple(texts)


@contextlib.contextmanager
def _named(item: RawItem) -> Iterator[None]:
    """Makes a `ValueError` the record's; one whose names are not Unicode, or no names by their
    length, is refused: manifests keep them."""
    try:
        for name in (item.key, item.source, item.licence, *item.subjects):
            require_unicode(name)
            if len(name) > _LONGEST_NAME and name != item.key:
                raise ValueError(
                    f"its source, licence or subject {brief(name)} has {len(name)} characters, "
                    f"more than {_LONGEST_NAME}"
                )
        yield
    except ValueError as error:
        raise BadRecord(item.key, _at(item, error)) from None


def _at(item: RawItem, reason: object) -> str:
    return f"{item.where}: {reason}" if item.where else str(reason)


def file_mark(path: epath.Path) -> str:
    """A file's size and time, which a copy of it may keep; a word where there is none."""
    try:
        if "://" in os.fspath(path):
            found = path.stat()
            return f"{found.length} {found.mtime}"
        status = os.stat(path)
    except (OSError, ValueError):  # the latter for a NUL in the name
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def join_inside(folder: epath.Path, name: str) -> epath.Path:
    """A file below a folder; `ValueError` for a name, or a link, that leads out of it."""
    require_inside(name)
    path = folder / name
    if leads_out(path, folder):
        raise ValueError(f"its file {brief(name)} is a link out of the folder; copy what it means")
    return path


def require_inside(name: str) -> None:
    """Raise `ValueError` for a relative name that is absolute, climbs by `..`, or holds a NUL."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"its file name {brief(name)} leads out of the folder")
    if "\0" in name or not path.name or len(name) > _LONGEST_NAME:
        raise ValueError(f"its file name {brief(name)} is not a file name")


def is_hidden(name: str) -> bool:
    """Whether a program put a file beside the user's: `._1.jpg`, `.ipynb_checkpoints/1.png`."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(p.startswith(".") and p.strip(".") for p in parts)


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
    except ValueError:
        raise ValueError("is not JSON (a number has too many digits)") from None
    except RecursionError:
        raise ValueError("is not JSON (nested too deep)") from None


def first_text(value: Any) -> str:
    """The text in a caption's field: a text, its UTF-8 bytes, or the first one in a list of them.

    Empty where there is none; `ValueError` for bytes of another encoding.
    """
    if isinstance(value, bytes):
        try:
            return decode_text(value)
        except ValueError as error:
            raise ValueError(f"its caption {error}") from None
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return next((text for text in map(first_text, value) if text.strip()), "")
    return ""


def caption_of(fields: Mapping[str, Any]) -> str:
    """A record's caption: the first of `CAPTIONS` with a text in it (`first_text`); empty where
    none has one."""
    texts = (first_text(fields.get(name)) for name in CAPTIONS)
    return next((text for text in texts if text.strip()), "")


def clean_caption(text: str) -> str:
    """`clean_text` of a caption; `ValueError` if nothing is left."""
    text = clean_text(text)
    if not text:
        raise ValueError("it has no caption")
    return text


def _decoded(part: str | bytes | epath.Path, size: int) -> str | Picture:
    if isinstance(part, str):
        return clean_caption(part)
    try:
        return decode_picture(_content(part), size)
    except ValueError as error:
        if isinstance(part, bytes):
            raise
        raise ValueError(f"{part.name[:100]}: {error}") from None


def _content(part: bytes | epath.Path) -> bytes:
    if isinstance(part, bytes):
        return part
    try:
        return read_regular(part)
    except OSError as error:
        raise ValueError(f"it can't be read ({type(error).__name__})") from None


def _require_quality(
    item: RawItem, texts: Sequence[str], sizes: Sequence[tuple[int, int]], data: DataConfig
) -> None:
    try:
        require_quality(data, item.licence, texts, sizes, item.columns)
    except ValueError as error:
        raise RefusedByRule(item.key, _at(item, error)) from None
