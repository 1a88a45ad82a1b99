"""JSON lines: captions of a folder of pictures, and interleaved documents."""

import array
import hashlib
import itertools
import numbers
from typing import Any

import numpy as np
from etils import epath

from cm3jax.data.readers.items import (
    BadRecord,
    RawItem,
    first_text,
    join_inside,
    parse_object,
)
from cm3jax.errors import UserError
from cm3jax.texts import MOST_BYTES, brief, clean_text, file_state

_STRIDE = 64
"""Lines between two remembered places of a file."""
_LONGEST_KEY = 1024
_KNOWN = {"file", "caption", "licence", "license", "source", "items", "key"}


class Lines:
    """The lines of a file by number. Of a large file, few places and no content are held.

    Raises `UserError` where the file was written again since it was opened: its places are stale.
    """

    def __init__(self, path: epath.Path):
        self.path, self._state = path, file_state(path)
        self._starts = array.array("q")
        self._count, offset = 0, 0
        with path.open("rb") as file:
            while line := file.readline(MOST_BYTES):
                if self._count % _STRIDE == 0:
                    self._starts.append(offset)
                self._count += 1
                offset += len(line)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        if file_state(self.path) != self._state:
            raise UserError(f"{self.path} was changed while it was read; start again.")
        with self.path.open("rb") as file:
            file.seek(self._starts[number // _STRIDE])
            for _ in range(number % _STRIDE):
                file.readline(MOST_BYTES)
            return file.readline(MOST_BYTES)

    def __iter__(self):
        with self.path.open("rb") as file:
            while line := file.readline(MOST_BYTES):
                yield line


class CaptionLines:
    """A `captions.jsonl` and the pictures beside it. A picture's second caption is its own record,
    with `#2` after its key."""

    def __init__(self, path: epath.Path):
        self._lines, self._folder = Lines(path), path.parent
        if not len(self._lines):
            raise UserError(f"{path} is empty; write one JSON object per picture.")
        self._again = _repeated(array.array("q", map(_file_hash, self._lines)))

    def __len__(self) -> int:
        return len(self._lines)

    def item(self, place: int) -> RawItem:
        """The record of a line, counted from 0; `BadRecord` says what is wrong with it."""
        where = f"{self._lines.path.name} line {place + 1}"
        key = where
        try:
            value = _object(self._lines[place])
            if isinstance(value.get("file"), str) and 0 < len(value["file"]) <= _LONGEST_KEY:
                key = (
                    f"{value['file']}#{self._again[place]}"
                    if place in self._again
                    else value["file"]
                )
            caption = first_text(value.get("caption"))
            for name, text in (("file", value.get("file")), ("caption", caption)):
                if not isinstance(text, str) or not text:
                    raise ValueError(f"has no text in {name!r}")
            source, licence = origin(value, str(self._folder))
            picture = join_inside(self._folder, value["file"])
            columns = others(value)
            if isinstance(columns.get("mask"), str):
                columns["mask"] = join_inside(self._folder, columns["mask"])
        except ValueError as error:
            raise BadRecord(key, f"{where} {error}") from None
        parts = (caption, picture)
        return RawItem(key, parts, source, licence, columns, where)


class InterleavedLines:
    """Documents of texts and pictures in any order.

    A line is a list of `{"text": ...}` and `{"image": PATH}`, the path relative to the file's
    folder, or an object with such a list as its `items`, and perhaps `licence` and `source`.
    """

    def __init__(self, path: epath.Path):
        self._lines = Lines(path)
        if not len(self._lines):
            raise UserError(f"{path} is empty; write one JSON document per line.")

    def __len__(self) -> int:
        return len(self._lines)

    def item(self, place: int) -> RawItem:
        """The document of a line, counted from 0; `BadRecord` says what is wrong with it."""
        path = self._lines.path
        key = f"{path.name} line {place + 1}"
        try:
            value = parse_object(self._lines[place])
            if isinstance(value, list):
                value = {"items": value}
            if not isinstance(value, dict) or not isinstance(value.get("items"), list):
                raise ValueError("is neither a list of items nor an object with `items`")
            parts = tuple(self._part(entry) for entry in value["items"])
            source, licence = origin(value, str(path))
        except ValueError as error:
            raise BadRecord(key, str(error)) from None
        return RawItem(key, parts, source, licence, others(value))

    def _part(self, entry: Any) -> str | epath.Path:
        if isinstance(entry, dict) and len(entry) == 1:
            if isinstance(entry.get("text"), str):
                return entry["text"]
            if isinstance(entry.get("image"), str):
                return join_inside(self._lines.path.parent, entry["image"])
        raise ValueError(f"has the item {brief(entry)}, neither a text nor an image")


def origin(value: dict[str, Any], source: str) -> tuple[str, str]:
    """Source and licence of a record's fields, `unknown` where it has none.

    A number is a licence too, as COCO's are. Raises `ValueError` for anything else.
    """
    found = []
    for names, default in ((("source",), source), (("licence", "license"), "unknown")):
        given = (_name(names[0], value[name]) for name in names if name in value)
        found.append(next(filter(None, given), default))
    return found[0], found[1]


def _name(field: str, value: Any) -> str:
    """A field as text; empty where tables have nothing: null, NaN, an empty text."""
    if value is None or value != value:
        return ""
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        # A column of integers with gaps comes as floats.
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, bytes):
        value = first_text(value)
    if not isinstance(value, str):
        raise ValueError(f"has no text in {field!r}")
    return clean_text(value)


def others(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that say neither what it is nor where it is from."""
    return {name.lower(): entry for name, entry in value.items() if name not in _KNOWN}


def _object(line: bytes) -> dict[str, Any]:
    value = parse_object(line)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _file_hash(line: bytes) -> int:
    """64 bits of a line's file name; 0 where it has none."""
    try:
        name = str(_object(line)["file"])
    except (ValueError, KeyError):
        return 0
    hashed = hashlib.blake2b(name.encode(errors="replace"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little", signed=True)


def _repeated(hashes: array.array) -> dict[int, int]:
    """Places of the values that stood before, each with how many times by now; 0 is no value."""
    values = np.frombuffer(hashes, np.int64)
    order = np.argsort(values, kind="stable")
    again = {}
    for _, group in itertools.groupby(order.tolist(), key=values.__getitem__):
        for count, place in enumerate(group, 1):
            if count > 1 and values[place]:
                again[place] = count
    return again
