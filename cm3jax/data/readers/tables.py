"""Parquet tables of captions, with images in them or in files beside them."""

import base64
import binascii
import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from cm3jax.data.changes import Made
from cm3jax.data.readers.items import (
    BadRecord,
    Facts,
    RawItem,
    caption_of,
    file_mark,
    join_inside,
)
from cm3jax.data.readers.lines import origin, others, split_of, subjects_of, usual_split
from cm3jax.data.readers.tars import PICTURES
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.texts import file_state

_PATHS = ("file", "path", "file_name", "filename", "image_path")
_PICTURES = (*PICTURES, "image", "images", "image_bytes", "bytes", "content", *_PATHS)
_OF_URLS = str.maketrans("-_", "+/")
_AT_ONCE = 64
"""Rows whose images are held while a table is looked through."""
_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""How image files begin, by which base64 is told from a path: that of a JPEG begins with /9j/."""


class TableShard:
    """The rows of one parquet file; one of its row groups is in memory at a time.

    A row has a `caption`, `text`, `captions` or `texts`: a text, UTF-8 bytes, or a list, of which
    the first counts. Its image is in a column that is named after a format (`jpg`, `png`, `webp`,
    as img2dataset has it), `image`, `images`, `image_bytes`, `bytes` or `content`: a file's bytes,
    base64 of them, the `datasets` library's struct or Spark's; or it is a path below `folder`, in
    one of these or in `file`, `path`, `file_name` or `image_path`. It may have a `licence`,
    a `source`, `subjects` and a `split`. Upper case is read as lower.
    """

    def __init__(self, path: epath.Path, name: str, folder: epath.Path):
        self._path, self._name, self._folder = path, name, folder
        self._state, self._usual = file_state(path), usual_split(name)
        self._fault, self._count = "", 1
        parquet = _parquet()
        try:
            with path.open("rb") as file:
                self._count = parquet.ParquetFile(file).metadata.num_rows
        except Exception as error:  # Arrow's exceptions have no common class below this one
            self._fault = f"it is not a parquet file that can be read ({type(error).__name__})"

    def __len__(self) -> int:
        return self._count

    def item(self, place: int) -> RawItem:
        """The record of a row; `BadRecord` says what is wrong with it."""
        key = self._name if self._fault else f"{self._name}#{place}"
        if self._fault:
            raise BadRecord(key, self._fault)
        if file_state(self._path) != self._state:
            raise UserError(f"{self._path} was changed while it was read; start again.")
        try:
            row = _row(self._path, self._state, place)
        except Exception as error:
            raise BadRecord(key, f"the row can't be read ({type(error).__name__})") from None
        try:
            caption = caption_of(row)
            if not caption:
                raise ValueError("it has no caption")
            source, licence = origin(row, str(self._folder))
            subjects, _ = subjects_of(row), split_of(row)
            parts = (caption, self._picture(row))
        except ValueError as error:
            raise BadRecord(key, str(error)) from None
        columns = {name: value for name, value in others(row).items() if name not in _PICTURES}
        return RawItem(key, parts, source, licence, columns, subjects=subjects)

    def facts(self) -> Iterator[Facts]:
        """What the columns say of each row's split, for which all images are read once: rows
        with the same image are told by its bytes."""
        rows = _outline(self._path) if not self._fault else iter([{}])
        for place, row in enumerate(rows):
            key = f"{self._name}#{place}"
            try:
                yield Facts(key, _mark(row), subjects_of(row), split_of(row), self._usual)
            except ValueError:
                yield Facts(key, usual=self._usual)

    def made(self, place: int) -> Made:
        """The state of the table, and of an image beside it."""
        key, state = f"{self._name}#{place}", file_mark(self._path)
        with contextlib.suppress(Exception):  # `item` says what is wrong with a row
            if not self._fault and _is_light(self._path, self._state):
                row = _row(self._path, self._state, place)
                names = [row[name] for name in _PICTURES if isinstance(row.get(name), str)]
                state += f", {file_mark(self._folder / names[0])}" if names else ""
        return Made(key, state)

    def _picture(self, row: dict[str, Any]) -> bytes | epath.Path:
        found = [_content(row.get(name)) for name in _PICTURES]
        # Bytes first: a path beside them says where they were once.
        contents = [value for value in found if isinstance(value, bytes)]
        if any(contents):
            return next(filter(None, contents))
        if path := next((value for value in found if isinstance(value, str) and value), ""):
            return join_inside(self._folder, path)
        raise ValueError("its image is empty" if contents else "it has no image")


def _mark(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells a row's image from others: its bytes or, without them, its path."""
    found = [row[name] for name in _PICTURES if row.get(name) is not None]
    if spark := [v["data"] for v in found if isinstance(v, dict) and "data" in v]:
        return (digest(spark[0] or b""),)  # without making a file of it
    contents = [value for value in map(_content, found) if value]
    contents.sort(key=lambda value: isinstance(value, str))
    return tuple(v if isinstance(v, str) else digest(v) for v in contents[:1])


def _content(value: Any) -> bytes | str | None:
    """An image's bytes, or its path, in whatever a column holds."""
    if isinstance(value, list) and value and all(isinstance(entry, int) for entry in value):
        value = bytes(value)
    if isinstance(value, list):
        value = next((entry for entry in value if entry), None)
    if isinstance(value, dict):
        if "nchannels" in {name.lower() for name in value}:
            return _from_spark(_lower(value))
        # As the `datasets` library keeps images.
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return _from_base64(value) or value
    if not isinstance(value, bytes):
        return None
    return (value.isascii() and _from_base64(value.decode())) or value


def _from_base64(text: str) -> bytes | None:
    """The bytes of an image that was written as base64, for URLs too, or as a data URI; None of
    another text."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split()).translate(_OF_URLS).rstrip("=")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        return None
    return content if content.startswith(_HEADS) else None


def _from_spark(value: dict[str, Any]) -> bytes:
    """A file of Spark's image struct, whose data are rows of blue, green and red (and alpha)."""
    try:
        shape = (int(value["height"]), int(value["width"]), int(value["nchannels"]))
        pixels = np.frombuffer(value["data"], np.uint8).reshape(shape)
        order = {1: [0, 0, 0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[shape[2]]
    except (KeyError, TypeError, ValueError):
        raise ValueError("its image is not as Spark writes one") from None
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[..., order]).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _row(path: epath.Path, state: tuple[int, ...], place: int) -> dict[str, Any]:
    group, first = 0, 0
    counts = _group_sizes(path, state)
    while place >= first + counts[group]:
        first += counts[group]
        group += 1
    table = _group(path, state, group)
    return _lower(*table.slice(place - first, 1).to_pylist())


def _outline(path: epath.Path) -> Iterator[dict[str, Any]]:
    """The rows' images, subjects and splits; rows that can't be read are empty."""
    wanted = {*_PICTURES, "subjects", "subject", "split"}
    with path.open("rb") as file:
        table = _parquet().ParquetFile(file)
        columns = [name for name in table.schema_arrow.names if name.lower() in wanted]
        for group in range(table.num_row_groups):
            left = table.metadata.row_group(group).num_rows
            with contextlib.suppress(Exception):  # `item` says what is wrong with each
                for batch in table.iter_batches(_AT_ONCE, [group], columns) if columns else ():
                    for row in batch.to_pylist():
                        yield _lower(row)
                        left -= 1
            yield from ({} for _ in range(left))


def _lower(row: dict[str, Any]) -> dict[str, Any]:
    """A row under names in lower case; of two columns that differ in case, the first with a
    value; of a map, say of captions by language, its values."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(one, tuple) for one in value):
            value = [one for _, one in value]
        if out.get(name.lower()) is None:
            out[name.lower()] = value
    return out


def _is_small(kind: Any) -> bool:
    return not any(word in str(kind) for word in ("binary", "struct"))


# `state` is the file's `file_state`: a file that is written again is another one.


@functools.lru_cache(maxsize=4)
def _is_light(path: epath.Path, state: tuple[int, ...]) -> bool:
    """Whether a table holds no images."""
    with path.open("rb") as file:
        return all(_is_small(field.type) for field in _parquet().ParquetFile(file).schema_arrow)


@functools.lru_cache(maxsize=4)
def _group_sizes(path: epath.Path, state: tuple[int, ...]) -> list[int]:
    with path.open("rb") as file:
        metadata = _parquet().ParquetFile(file).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=1)
def _group(path: epath.Path, state: tuple[int, ...], group: int):
    with path.open("rb") as file:
        return _parquet().ParquetFile(file).read_row_group(group)


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "parquet files are read with pyarrow; install it (the extra `pipeline`)."
        ) from None
    return pyarrow.parquet
