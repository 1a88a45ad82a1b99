"""Numbered records in ArrayRecord files.

Every record is a chunk of its own with a 64-bit hash of its bytes, which the format writes and
every read compares: damage is found where it is read, at no cost of ours, and reported here by file
and record. Files of a length that is not the manifest's are found when a corpus or bank is opened.
"""

import bisect
import errno
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.shapes import Int

_TOGETHER = 1024
"""Records that are read at once when all are read."""


def write_records(path: epath.PathLike, records: Iterable[bytes]) -> None:
    """Write a file of records in order; `OSError` if that fails, say on a full disk."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    for record in records:
        writer.write(record)
    try:
        writer.close()
    except RuntimeError as error:  # it kept what failed before, and tells it in words
        told = (number for number in errno.errorcode if os.strerror(number) in str(error))
        number = next(told, errno.EIO)
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def pack_document(ids: Int[np.ndarray, " L"], rest: Mapping[str, Any]) -> bytes:
    """The record of a document: uint32 number of ids, the ids, the rest as JSON."""
    packed = np.ascontiguousarray(ids, "<i4")
    text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return np.uint32(len(packed)).astype("<u4").tobytes() + packed.tobytes() + text.encode()


def packed_ids(record: bytes) -> Int[np.ndarray, " L"]:
    """The ids in a record of `pack_document`, int32."""
    count = int(np.frombuffer(record, "<u4", 1)[0])
    return np.frombuffer(record, "<i4", count, offset=4)


def unpack_document(record: bytes) -> dict[str, Any]:
    """The rest of a record of `pack_document`, lists as tuples, and its `ids`."""
    ids = packed_ids(record)
    rest = json.loads(record[4 + ids.nbytes :])
    return {n: tuple(v) if isinstance(v, list) else v for n, v in rest.items()} | {"ids": ids}


class Records:
    """The records of several files, numbered through.

    `counts` gives each file's number of records, in order; `remedy` is what a reader of the error
    about a damaged file should do.
    """

    def __init__(self, directory: epath.PathLike, counts: Mapping[str, int], remedy: str):
        self._paths = [epath.Path(directory) / name for name in counts]
        self._first = list(itertools.accumulate(counts.values(), initial=0))
        self._remedy = remedy

    def open(self) -> None:
        """Open all files now and not at the first read: what replaces them later is not seen.

        `UserError` for a damaged one.
        """
        _ = self._readers

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, number: int) -> bytes:
        """One record; `IndexError` outside, `UserError` if it is damaged."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} is outside the {len(self)} of {self._paths[0]}")
        file = bisect.bisect_right(self._first, number) - 1
        return self._read(file, [int(number) - self._first[file]])[0]

    def __iter__(self) -> Iterator[bytes]:
        """All records in order; `UserError` names the first damaged one."""
        for file, (first, end) in enumerate(itertools.pairwise(self._first)):
            for start in range(0, end - first, _TOGETHER):
                places = list(range(start, min(start + _TOGETHER, end - first)))
                try:
                    yield from self._read(file, places)
                except UserError:  # one of them; say which
                    yield from (self._read(file, [place])[0] for place in places)

    def _read(self, file: int, places: list[int]) -> list[bytes]:
        try:
            return self._readers[file].read(places)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:120]
            raise UserError(
                f"record {places[0]} of {self._paths[file]} is damaged ({reason}); {self._remedy}."
            ) from None

    @functools.cached_property
    def _readers(self) -> list:
        from array_record.python.array_record_module import ArrayRecordReader

        readers = []
        for path, (first, end) in zip(self._paths, itertools.pairwise(self._first), strict=True):
            # Read-ahead helps only those who read in order.
            reader = ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0,max_parallelism:0")
            if reader.num_records() != end - first:  # 0 when its index does not match its hash
                raise UserError(
                    f"{path} is damaged (its index says {reader.num_records()} records instead of "
                    f"{end - first}); {self._remedy}."
                )
            readers.append(reader)
        return readers
