"""Which records of a source without splits of its own are for training, validation and the bank.

What a record or the settings say is done, then what its file is named for, unless all of them are
named for validation. Of the rest, images or subjects are held back for
validation, not records: whatever shares one with a record for validation is for validation, too.
"""

import array
import dataclasses
import fnmatch
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from cm3jax.config import DataConfig
from cm3jax.data.readers.items import Reader
from cm3jax.errors import UserError
from cm3jax.sequence import prng
from cm3jax.shapes import Bool, Int

_HELD_BACK = 50
"""One image (or subject) in this many is for validation; of fewer, the last one."""
_NAMES = ("", "train", "validation", "bank")
_FREE, _TRAIN, _VALIDATION, _BANK = range(len(_NAMES))


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """Numbers of the records of each split, in ascending order."""

    train: Int[np.ndarray, " T"]
    validation: Int[np.ndarray, " V"]
    bank_only: Int[np.ndarray, " O"]
    """Found at generation and never seen in training."""
    left_out: int
    """Records for training that a sample of `data.records` leaves out."""

    @property
    def bank(self) -> Int[np.ndarray, " B"]:
        """What can be retrieved: all that is trained on, and what is for the bank only."""
        return np.union1d(self.train, self.bank_only)


def split_records(readers: Sequence[Reader], data: DataConfig, seed: int) -> Splits:
    """The splits of all records of some readers, bad ones included.

    More than `data.records` for training are cut to a sample by the seed. Raises `UserError` where
    subjects are to be held back and no record names any.
    """
    given, usual = array.array("b"), array.array("b")
    pictures, subjects = _Marks(), _Marks()
    for facts in (facts for reader in readers for facts in reader.facts()):
        number = len(given)
        given.append(_NAMES.index(facts.split or _by_pattern(facts.key, data)))
        usual.append(_NAMES.index(facts.usual))
        pictures.add(number, facts.pictures or (f"\0{number}",))
        subjects.add(number, facts.subjects)
    split, named = np.asarray(given, np.int8), np.asarray(usual, np.int8)
    if (named != _VALIDATION).any():
        split = np.where(split == _FREE, named, split)
    held = split == _VALIDATION
    if not held.any():
        by = subjects if data.hold_back == "subjects" else pictures
        if by is subjects and len(split) and not len(subjects):
            raise UserError(
                f"data.hold_back=subjects, but no record of {data.source} names any in `subjects`; "
                "add them, or use data.hold_back=pictures."
            )
        held = by.every(_HELD_BACK, split == _FREE)
    split = np.where(pictures.sharing(held) & (split == _FREE), _VALIDATION, split)
    train = np.flatnonzero((split == _FREE) | (split == _TRAIN))
    kept = train
    if len(train) > data.records:
        kept = np.sort(train[prng.permutation(seed, 0, len(train))[: data.records]])
    only, validation = (np.flatnonzero(split == code) for code in (_BANK, _VALIDATION))
    return Splits(kept, validation, only, len(train) - len(kept))


def _by_pattern(key: str, data: DataConfig) -> str:
    """The split of the last of `data.splits` that a record's key fits; "" without."""
    for pattern, split in reversed(data.splits):
        inside = "*" if pattern == "." else f"{pattern.rstrip('/')}/*"
        if fnmatch.fnmatchcase(key, pattern) or fnmatch.fnmatchcase(key, inside):
            return split
    return ""


class _Marks:
    """What records have in common: names by record, hashed."""

    def __init__(self):
        self._records, self._hashes = array.array("q"), array.array("q")
        self._count = 0

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, record: int, names: Iterable[str]) -> None:
        """The names of the next record, numbered from 0."""
        self._count = record + 1
        for name in names:
            hashed = hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest()
            self._records.append(record)
            self._hashes.append(int.from_bytes(hashed, "little", signed=True))

    def every(self, step: int, among: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
        """The records that have one of every `step`-th name, numbered as they come among some
        records; the last name where there are fewer than that, and none of a single one."""
        records, hashes = self._arrays()
        inside = among[records]
        names, first = np.unique(hashes[inside], return_index=True)
        in_order = names[np.argsort(first)]
        chosen = in_order[step - 1 :: step] if len(names) >= step else in_order[1:][-1:]
        return self._having(chosen)

    def sharing(self, wanted: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
        """The records that have a name in common with the wanted ones, and these."""
        records, hashes = self._arrays()
        return wanted | self._having(hashes[wanted[records]])

    def _having(self, names: np.ndarray) -> Bool[np.ndarray, " M"]:
        records, hashes = self._arrays()
        having = np.zeros(self._count, bool)
        having[records[np.isin(hashes, names)]] = True
        return having

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._hashes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.frombuffer(self._records, np.int64), np.frombuffer(self._hashes, np.int64)
