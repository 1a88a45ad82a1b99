"""JSON lines: captions of a folder of images, and interleaved documents."""

import array
import hashlib
import itertools
import math
import numbers
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from cm3jax.data.changes import Made
from cm3jax.data.readers.items import (
    CAPTIONS,
    BadRecord,
    Facts,
    RawItem,
    caption_of,
    file_mark,
    first_text,
    join_inside,
    parse_object,
)
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.texts import MOST_BYTES, brief, clean_text, file_state

_LONGEST_KEY = 1024
_STRIDE = 64
"""Lines between two remembered places of a file."""
_FILES = ("file", "file_name", "image", "image_path", "filename", "path")
_SUBJECTS = ("subjects", "subject")
_SPLITS = {"train": ("train", "training"), "bank": ("bank",)}
_SPLITS |= {"validation": ("validation", "valid", "val", "dev", "test")}
_NAMED = "|".join(_SPLITS["validation"])
_FOR_VALIDATION = re.compile(rf"(?:.*/)?(?:split=)?(?:{_NAMED})(?:/.*|-\d+-of-\d+\..*)")
_KNOWN = {*_FILES, *CAPTIONS, *_SUBJECTS, "split", "licence", "license", "source", "items", "key"}


class Lines:
    """The lines of a file by number, without empty ones at its end. Of a large file, few places and
    no content are held.

    Raises `UserError` where the file was written again since it was opened: its places are stale.
    """

    def __init__(self, path: epath.Path):
        self.path, self._state = path, file_state(path)
        self._starts = array.array("q")
        self._count, number, offset = 0, 0, 0
        with path.open("rb") as file:
            while line := file.readline(MOST_BYTES):
                if number % _STRIDE == 0:
                    self._starts.append(offset)
                number += 1
                offset += len(line)
                if line.strip():
                    self._count = number

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
            for _ in range(self._count):
                yield file.readline(MOST_BYTES)


class CaptionLines:
    """A `captions.jsonl`, or a `metadata.jsonl` as the `datasets` library writes it, and the
    images beside it. An image's second caption is its own record, with `#2` after its key.

    `name`, of one of several such folders, goes in front of the keys. Records of the folders that
    the library takes for evaluation (`validation`, `test`, …) are for validation.
    """

    def __init__(self, path: epath.Path, name: str = ""):
        self._lines, self._folder = Lines(path), path.parent
        self._name = name and f"{name}/"
        self._usual = usual_split(self._name)
        if not len(self._lines):
            raise UserError(f"{path} is empty; write one JSON object per image.")
        self._again = _repeated(array.array("q", map(_file_hash, self._lines)))

    def __len__(self) -> int:
        return len(self._lines)

    def item(self, place: int) -> RawItem:
        """The record of a line, counted from 0; `BadRecord` says what is wrong with it."""
        where = f"{self._name}{self._lines.path.name} line {place + 1}"
        key = where
        try:
            value = _object(self._lines[place])
            file = _file_of(value)
            key = f"{self._name}{file}"
            key = f"{key}#{self._again[place]}" if place in self._again else key
            caption = caption_of(value)
            if not caption:
                raise ValueError(f"has no text in {CAPTIONS[0]!r}")
            source, licence = origin(value, str(self._folder))
            subjects, _ = subjects_of(value), split_of(value)
            picture = join_inside(self._folder, file)
            columns = others(value)
            mask = columns.get("mask")
            if mask is not None and mask == mask:  # nor NaN, as tables have nothing
                columns["mask"] = join_inside(self._folder, _mask(mask))
        except ValueError as error:
            raise BadRecord(key, f"{where} {error}") from None
        return RawItem(key, (caption, picture), source, licence, columns, where, subjects)

    def facts(self) -> Iterator[Facts]:
        """What each line says of its split."""
        for place, line in enumerate(self._lines):
            try:
                value = _object(line)
                file = f"{self._name}{_file_of(value)}"
                yield Facts(file, (file,), subjects_of(value), split_of(value), self._usual)
            except ValueError:
                key = f"{self._name}{self._lines.path.name} line {place + 1}"
                yield Facts(key, usual=self._usual)

    def made(self, place: int) -> Made:
        """The line, and the state of its image and its mask."""
        line = self._lines[place].rstrip(b"\r\n")
        try:
            value = _object(line)
            name = _file_of(value)
            files = [file for file in (name, value.get("mask")) if isinstance(file, str)]
        except ValueError:
            name, files = f"{self._lines.path.name} line {place + 1}", []
        return Made(f"{self._name}{name}", _state(line, self._folder, files))


class InterleavedLines:
    """Documents of texts and images in any order.

    A line is a list of `{"text": ...}` and `{"image": PATH}`, the path relative to the file's
    folder, or an object with such a list as its `items`, and perhaps `licence`, `source` and
    `subjects`.
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
            value = _document(self._lines[place])
            parts = tuple(self._part(entry) for entry in value["items"])
            source, licence = origin(value, str(path))
            subjects, _ = subjects_of(value), split_of(value)
        except ValueError as error:
            raise BadRecord(key, str(error)) from None
        return RawItem(key, parts, source, licence, others(value), subjects=subjects)

    def facts(self) -> Iterator[Facts]:
        """What each line says of its split."""
        for place, line in enumerate(self._lines):
            key = f"{self._lines.path.name} line {place + 1}"
            try:
                value = _document(line)
                items = (entry for entry in value["items"] if isinstance(entry, dict))
                files = [str(entry["image"]) for entry in items if "image" in entry]
                pictures = tuple(map(posixpath.normpath, files))
                yield Facts(key, pictures, subjects_of(value), split_of(value))
            except ValueError:
                yield Facts(key)

    def made(self, place: int) -> Made:
        """The line, and the state of its images."""
        line, path = self._lines[place].rstrip(b"\r\n"), self._lines.path
        try:
            items = _document(line)["items"]
        except ValueError:
            items = []
        named = (entry.get("image") for entry in items if isinstance(entry, dict))
        files = [file for file in named if isinstance(file, str)]
        return Made(f"{path.name} line {place + 1}", _state(line, path.parent, files))

    def _part(self, entry: Any) -> str | epath.Path:
        if isinstance(entry, dict):
            entry = {name: part for name, part in entry.items() if part is not None}
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
    is_number = isinstance(value, numbers.Number) and not isinstance(value, bool)
    if is_number:
        # A column of integers with gaps comes as floats.
        whole = math.isfinite(value) and value == int(value)
        return str(int(value)) if whole else str(value)
    if isinstance(value, bytes):
        value = first_text(value)
    if not isinstance(value, str):
        raise ValueError(f"has no text in {field!r}")
    return clean_text(value)


def subjects_of(value: dict[str, Any]) -> tuple[str, ...]:
    """What a record's fields say that it is about: a list of names or one name, in `subjects` or
    `subject`; what tables have for nothing is no name. `ValueError` for anything else there."""
    given = [value[name] for name in _SUBJECTS if value.get(name) is not None][:1]
    names = given[0] if given and isinstance(given[0], list) else given
    found = [name for name in names if name is not None and name == name]
    if not all(isinstance(name, str | bytes) for name in found):
        raise ValueError(f"has no list of names in {_SUBJECTS[0]!r}")
    return tuple(dict.fromkeys(filter(None, (_name(_SUBJECTS[0], name) for name in found))))


def split_of(value: dict[str, Any]) -> str:
    """The split that a record's fields put it in: `train`, `validation`, `bank`, or none (empty);
    `ValueError` for another one."""
    given = value.get("split")
    try:
        name = _name("split", given).lower()
    except ValueError:
        name = repr(given)
    if not name or (found := named_split(name)):
        return name and found
    raise ValueError(f"has the split {brief(given)}, none of {', '.join(_SPLITS)}")


def usual_split(name: str) -> str:
    """The split that a file is named for: `validation` where a folder of its path is called
    `validation`, `test` or the like, or it is a shard (`test-00000-of-00002.parquet`), as the
    `datasets` library has them, or Spark (`split=test/`); else none (empty)."""
    return "validation" if _FOR_VALIDATION.fullmatch(name) else ""


def named_split(folder: str) -> str:
    """The split that a folder's name is one of; none (empty) for other names."""
    return next((split for split, names in _SPLITS.items() if folder in names), "")


def others(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that say neither what it is nor where it is from."""
    return {name.lower(): entry for name, entry in value.items() if name not in _KNOWN}


def _state(line: bytes, folder: epath.Path, files: list[str]) -> str:
    return digest(line, *(file_mark(folder / file) for file in files))


def _document(line: bytes) -> dict[str, Any]:
    """A line's document with its `items`; `ValueError` says why there is none."""
    value = parse_object(line)
    if isinstance(value, list):
        value = {"items": value}
    if not isinstance(value, dict) or not isinstance(value.get("items"), list):
        raise ValueError("is neither a list of items nor an object with `items`")
    return value


def _object(line: bytes) -> dict[str, Any]:
    value = parse_object(line)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _first(value: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _file_of(value: dict[str, Any]) -> str:
    """The name of a line's image; `ValueError` unless it is a text of a name's length."""
    file = _first(value, _FILES)
    if not isinstance(file, str) or not 0 < len(file) <= _LONGEST_KEY:
        raise ValueError(f"has no text in {_FILES[0]!r}")
    return posixpath.normpath(file)  # ./a.png is a.png


def _mask(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError("has no text in 'mask'")
    return name


def _file_hash(line: bytes) -> int:
    """64 bits of a line's file name; 0 where it has none."""
    try:
        name = _file_of(_object(line))
    except ValueError:
        return 0
    hashed = hashlib.blake2b(name.encode(errors="replace"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little", signed=True)


def _repeated(hashes: array.array) -> dict[int, int]:
    """Places of the values that stood before, each with how many times by now; 0 is not a value."""
    values = np.frombuffer(hashes, np.int64)
    order = np.argsort(values, kind="stable")
    again = {}
    for _, group in itertools.groupby(order.tolist(), key=values.__getitem__):
        for count, place in enumerate(group, 1):
            if count > 1 and values[place]:
                again[place] = count
    return again
