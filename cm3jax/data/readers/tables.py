"""Parquet tables of captions, with pictures in them or in files beside them."""

import functools
from typing import Any

from etils import epath

from cm3jax.data.readers.items import BadRecord, RawItem, join_inside
from cm3jax.data.readers.lines import origin, others
from cm3jax.errors import UserError

_CAPTIONS = ("caption", "text")
_PICTURES = ("jpg", "image", "file", "path", "file_name", "filename", "image_path")


class TableShard:
    """The rows of one parquet file; one of its row groups is in memory at a time.

    A row has a `caption` (or `text`), and its picture as bytes or as a path below `folder`, in
    `jpg`, `image`, `file`, `path`, `file_name` or `image_path`. Upper case is read as lower.
    """

    def __init__(self, path: epath.Path, name: str, folder: epath.Path):
        self._path, self._name, self._folder = path, name, folder
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
        try:
            row = _row(self._path, place)
        except Exception as error:
            raise BadRecord(key, f"the row can't be read ({type(error).__name__})") from None
        try:
            caption = next((row[n] for n in _CAPTIONS if isinstance(row.get(n), str)), "")
            if not caption.strip():
                raise ValueError("it has no caption")
            source, licence = origin(row, str(self._folder))
            parts = (caption, self._picture(row))
        except ValueError as error:
            raise BadRecord(key, str(error)) from None
        columns = {name: value for name, value in others(row).items() if name not in _PICTURES}
        return RawItem(key, parts, source, licence, columns)

    def _picture(self, row: dict[str, Any]) -> bytes | epath.Path:
        for value in (row.get(name) for name in _PICTURES):
            if isinstance(value, dict):  # as the `datasets` library keeps pictures
                value = value.get("bytes") or value.get("path")
            if isinstance(value, bytes):
                return value
            if isinstance(value, str) and value:
                return join_inside(self._folder, value)
        raise ValueError("it has no picture")


def _row(path: epath.Path, place: int) -> dict[str, Any]:
    group, first = 0, 0
    counts = _group_sizes(path)
    while place >= first + counts[group]:
        first += counts[group]
        group += 1
    table = _group(path, group)
    (row,) = table.slice(place - first, 1).to_pylist()
    return {name.lower(): value for name, value in row.items()}


@functools.lru_cache(maxsize=4)
def _group_sizes(path: epath.Path) -> list[int]:
    with path.open("rb") as file:
        metadata = _parquet().ParquetFile(file).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=1)
def _group(path: epath.Path, group: int):
    with path.open("rb") as file:
        return _parquet().ParquetFile(file).read_row_group(group)


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "parquet files are read with pyarrow; install it with `pip install cm3jax[pipeline]`."
        ) from None
    return pyarrow.parquet
