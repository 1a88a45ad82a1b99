"""Reading the files of public data sets: what is broken is skipped with its reason, never fatal."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.files import read_json
from cm3jax.tasks.task import Case, Skipped

Read = Case | Skipped
HELD_BACK = 50
"""Every so-many-th record is for validation where a data set has no split of its own."""


class Broken(ValueError):
    """A record that gives no case; its message is the reason."""


def convert(
    records: Iterable[tuple[str, Any]], make: Callable[[str, Any], Case]
) -> Iterator[Case | Skipped]:
    """A case of each (key, record), or why there is none."""
    for key, record in records:
        try:
            yield make(key, record)
        except KeyError as error:
            yield Skipped(key, f"it has no {error}")
        except (Broken, TypeError, ValueError, AttributeError, IndexError) as error:
            yield Skipped(key, str(error) if isinstance(error, Broken) else f"damaged: {error}")


def listed(path: epath.Path, field: str = "") -> list[Any]:
    """The list in a JSON file, or in a field of it; `UserError` without one."""
    value = read_json(path, "an annotation file")
    found = value.get(field) if field and isinstance(value, dict) else value
    if not isinstance(found, list):
        where = f"{field!r} of {path}" if field else str(path)
        raise UserError(f"{where} is not a list; give the file as it was published.")
    return found


def lines(path: epath.Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not empty, each with its name and number."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        raise UserError(f"an annotation file is missing: {path} does not exist.") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path.name}:{number}", line


def json_lines(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON Lines file; a line that is not JSON is None."""
    for key, line in lines(path):
        try:
            yield key, json.loads(line)
        except json.JSONDecodeError:
            yield key, None


def by_id(values: Iterable[Any], name: str = "id") -> dict[Any, Any]:
    """Records by a field of theirs; those without it are left out."""
    return {value[name]: value for value in values if isinstance(value, dict) and name in value}


def grouped(values: Iterable[Any], name: str) -> dict[Any, list[Any]]:
    """Records with the same value of a field, in order of appearance."""
    groups: dict[Any, list[Any]] = {}
    for value in values:
        if isinstance(value, dict) and name in value:
            groups.setdefault(value[name], []).append(value)
    return groups


def text_of(record: Any, field: str) -> str:
    """A text of a record; `Broken` where it is none, or empty."""
    if not isinstance(record, dict):
        raise Broken("it is no JSON object")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise Broken(f"its {field!r} is no text")
    return " ".join(value.split())


def inside(folder: epath.Path, name: Any) -> epath.Path:
    """A file in a folder by the name that a record gives; `Broken` if it leads out of it."""
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
        raise Broken(f"{name!r} is no file name")
    return folder / name


def majority(answers: Sequence[Any]) -> str:
    """The most frequent answer, of equally frequent ones the first."""
    given = [text_of(answer, "answer") for answer in answers]
    if not given:
        raise Broken("it has no answer")
    return Counter(given).most_common(1)[0][0]


def held_back(records: Iterable[Any], split: str) -> list[Any]:
    """The share of a split of records that come without one."""
    return [
        record
        for number, record in enumerate(records, 1)
        if (number % HELD_BACK == 0) == (split == "validation")
    ]
