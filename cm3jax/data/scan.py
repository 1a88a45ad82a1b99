"""One pass over a source: what is kept of its records, and their images as they are needed."""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from cm3jax.data.sources import RawRecord, Source
from cm3jax.data.usable import usable
from cm3jax.shapes import Int, UInt8

IN_MEMORY = 1 << 30
"""Bytes up to which images are held in memory; those of larger sets are read as needed."""
_TOGETHER = 256
_THREADS = 4
"""Decoding releases Python's lock, reading waits: threads do both at once."""
T = TypeVar("T")
TakePicture = Callable[[RawRecord], np.ndarray]
"""Takes a record's image, always of one size."""


class RecordPictures:
    """One image of each of some records of a source, by number."""

    def __init__(
        self,
        source: Source,
        records: Int[np.ndarray, " M"],
        picture: TakePicture,
        held: UInt8[np.ndarray, "M Y X 3"] | None = None,
    ):
        """`held` are all of them, where they fit in memory."""
        self.held = held
        self._source, self._records, self._picture = source, records, picture

    def take(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B Y X 3"]:
        """Some images; `BadRecord` for one that can't be read any more."""
        if self.held is not None:
            return self.held[rows]
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            numbers = self._records[rows].tolist()
            return np.stack(list(pool.map(lambda n: self._picture(self._source[n]), numbers)))


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Generic[T]):
    """What a pass over a source found."""

    records: Int[np.ndarray, " M"]
    """Numbers of the records that are used, ascending."""
    kept: list[T]
    pictures: RecordPictures
    notes: list[str]
    """What was left out, for the user."""


def scan(
    source: Source,
    keep: Callable[[RawRecord], T | None],
    picture: TakePicture,
    in_memory: int = IN_MEMORY,
) -> Scan[T]:
    """Read every record once and keep what `keep` makes of it; None leaves it out.

    Raises `UserError` where too many records are broken (`usable`).
    """
    records: list[int] = []
    kept: list[T] = []
    notes: list[str] = []
    held: list[np.ndarray] | None = []

    def read(number: int) -> tuple[T, np.ndarray] | None:
        record = source[number]
        found = keep(record)
        return None if found is None else (found, picture(record))

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        futures: dict[int, concurrent.futures.Future] = {}

        def read_ahead(number: int) -> tuple[T, np.ndarray] | None:
            if number % _TOGETHER == 0:
                span = range(number, min(number + _TOGETHER, len(source)))
                futures.update((n, pool.submit(read, n)) for n in span)
            return futures.pop(number).result()

        for number, found in usable(source, read_ahead, notes.append):
            if found is not None:
                records.append(number)
                kept.append(found[0])
                if held is not None:
                    held.append(found[1])
            if held and len(held) * held[0].nbytes > in_memory:
                held = None
    numbers = np.asarray(records, np.int64)
    array = np.stack(held) if held else None
    return Scan(numbers, kept, RecordPictures(source, numbers, picture, array), notes)
