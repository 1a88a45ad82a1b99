"""The cases of a data set of tasks by number, and what each is read from."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.config import DataConfig
from cm3jax.data.changes import Made
from cm3jax.data.readers.items import file_mark
from cm3jax.data.tfds_tasks import TfdsCases
from cm3jax.emblems.task_cases import NAMES, asked
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.sequence import prng
from cm3jax.shapes import Int
from cm3jax.tasks import READERS
from cm3jax.tasks.task import Case, Derived, Overlay, Skipped, Value

_TFDS = "tfds:"


@runtime_checkable
class Cases(Protocol):
    """The cases of a split by number."""

    def __len__(self) -> int:
        """Number of cases."""
        ...

    def __getitem__(self, index: int) -> Case | Skipped:
        """Case `index`, from 0, or why there is none."""
        ...


@runtime_checkable
class DatedCases(Cases, Protocol):
    """Cases that may change between two readings."""

    def made(self, span: range) -> list[Made]:
        """The state of what some cases are read from; it changes when that does."""
        ...


@dataclasses.dataclass(frozen=True)
class EmblemsCases:
    """Cases of a task of emblems."""

    task: str
    split: str
    count: int
    seed: int
    size: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Case:
        return asked(self.task, self.split, index, self.seed, self.size).case


@dataclasses.dataclass(frozen=True, eq=False)
class FileCases:
    """Cases as a data set's own annotation files say, with the paths of their images."""

    cases: Sequence[Case | Skipped]
    note: str = ""
    """What a user should know of them."""

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case | Skipped:
        return self.cases[index]

    def made(self, span: range) -> list[Made]:
        """What the annotations say of some cases, and the state of their images."""
        return [_made(self.cases[index]) for index in span]


def open_cases(name: str, folder: str, split: str, data: DataConfig, seed: int) -> Cases:
    """The cases of a data set. Emblems give `data.records` of them, and a fiftieth of that for
    validation; a folder gives all that its files have, in training a sample of `data.records`. A
    folder `tfds:NAME/CONFIG:VERSION` is a dataset of tensorflow-datasets in `data.raw`.

    Raises `UserError` for an unknown name and for a folder without the data set's files.
    """
    if folder == "emblems":
        if name not in NAMES:
            raise UserError(f"emblems has no task {name!r}; it has {', '.join(NAMES)}.")
        count = data.records if split == "train" else max(100, data.records // 50)
        return EmblemsCases(name, split, count, seed, data.image_size)
    if name not in READERS:
        raise UserError(f"there is no data set {name!r}; there are {', '.join(READERS)}.")
    if folder.startswith(_TFDS):
        found = TfdsCases(name, folder.removeprefix(_TFDS), split, data.raw, data.image_size)
        return found.some(*_sample(len(found), data, seed)) if split == "train" else found
    cases = list(READERS[name](epath.Path(folder), split))
    if split != "train":
        return FileCases(cases)
    numbers, note = _sample(len(cases), data, seed)
    return FileCases([cases[number] for number in numbers.tolist()], note)


def _sample(count: int, data: DataConfig, seed: int) -> tuple[Int[np.ndarray, " M"], str]:
    """The numbers of at most `data.records` cases, drawn by the seed, in order; and what to say."""
    if count <= data.records:
        return np.arange(count), ""
    note = f"a sample of {data.records} of {count} cases; a larger data.records takes more"
    return np.sort(prng.permutation(seed, 0, count)[: data.records]), note


def _made(case: Case | Skipped) -> Made:
    if isinstance(case, Skipped):
        return Made(case.key, case.reason)
    said = (case.task.name, case.source, case.licence)
    values = (part for name in sorted(case.values) for part in _states(case.values[name]))
    return Made(case.key, digest(repr(said), *values))


def _states(value: Value) -> Iterator[str | np.ndarray]:
    """The texts and arrays of a field, and the state of its image files."""
    match value:
        case tuple():
            for part in value:
                yield from _states(part)
        case str() | np.ndarray():
            yield value
        case Derived(path, _) | Overlay(path, _) | (epath.Path() as path):
            yield f"{path.name} {file_mark(path)}"
