"""Reading the files of public data sets: what is broken is skipped with its reason, never fatal."""

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_json
from cm3jax.io.texts import brief, clean_text, leads_out, read_regular, shorten, split_lines
from cm3jax.tasks.task import Case, Skipped

Read = Case | Skipped
HELD_BACK = 50
"""Every n-th record is for validation where a data set has no split of its own."""


class BadCase(ValueError):
    """A record that gives no case; its message is the reason."""


def to_cases(
    records: Iterable[tuple[str, Any]], make: Callable[[str, Any], Case]
) -> Iterator[Case | Skipped]:
    """A case for each (key, record), or why there is none; a repeated key gets a number."""
    seen: Counter[str] = Counter()
    for key, record in records:
        seen[key] += 1
        key = key if seen[key] == 1 else f"{key}#{seen[key]}"
        try:
            yield make(key, record)
        except KeyError as error:
            yield Skipped(key, f"it has no {brief(error.args[0]) if error.args else 'such field'}")
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            reason = str(error) if isinstance(error, BadCase) else f"damaged: {error}"
            yield Skipped(key, shorten(reason))


def listed(path: epath.Path, field: str = "") -> list[Any]:
    """The list in a JSON file, or in a field of it; `UserError` without one."""
    value = read_json(path, "an annotation file")
    found = value.get(field) if field and isinstance(value, dict) else value
    if not isinstance(found, list):
        where = f"{field!r} of {path}" if field else str(path)
        raise UserError(f"{where} is not a list; give the file as it was published.")
    return found


def lines(path: epath.Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not empty, each with its name and number.

    Bytes that are not UTF-8 become halves of surrogate pairs, which `sound` refuses.
    """
    try:
        content = read_regular(path, None)
    except OSError:
        raise UserError(f"an annotation file is missing: {path} does not exist.") from None
    except ValueError as error:
        raise UserError(f"the annotation file {path} can't be read: {error}.") from None
    text = content.decode(errors="surrogateescape").removeprefix("\ufeff")
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            yield f"{path.name}:{number}", line


def json_lines(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON Lines file; a line that is not JSON is None."""
    for key, line in lines(path):
        try:
            yield key, json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or a number of 4,300 digits
            yield key, None


def csv_rows(path: epath.Path) -> Iterator[list[str]]:
    """The rows of a CSV file with a row per line; a line that is no such row, as with a quote that
    nothing closes, is an empty one."""
    for _, line in lines(path):
        try:
            yield next(csv.reader([line], strict=True))
        except csv.Error:
            yield []


def by_id(values: Iterable[Any], name: str = "id") -> dict[str, Any]:
    """Records by an id of theirs, as `id_of` writes it; those without one are left out.

    Of two with the same id the first counts.
    """
    found: dict[str, Any] = {}
    for value in values:
        with contextlib.suppress(BadCase, KeyError):
            found.setdefault(id_of(value, name), value)
    return found


def grouped(values: Iterable[Any], name: str) -> dict[str, list[Any]]:
    """Records with the same value of an id, in order of appearance."""
    groups: dict[str, list[Any]] = {}
    for value in values:
        with contextlib.suppress(BadCase, KeyError):
            groups.setdefault(id_of(value, name), []).append(value)
    return groups


def id_of(record: Any, field: str) -> str:
    """An id of a record as text, so that 1, 1.0 and "1" are the same; `BadCase` where it is
    none.
    """
    if not isinstance(record, dict):
        raise BadCase("it is not a JSON object")
    value = record[field]
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return str(int(value))
    raise BadCase(f"its {field!r} is not an id: {brief(value)}")


def text_of(record: Any, field: str) -> str:
    """A text of a record; `BadCase` where it is none, or empty."""
    if not isinstance(record, dict):
        raise BadCase("it is not a JSON object")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise BadCase(f"its {field!r} is not a text")
    return sound(value)


def sound(text: str) -> str:
    """A text with single spaces; `BadCase` if it is not UTF-8 or holds control characters."""
    try:
        return " ".join(clean_text(text).split())
    except ValueError as error:
        raise BadCase(str(error)) from None


def inside(folder: epath.Path, name: Any) -> epath.Path:
    """A file in a folder by the name that a record gives; `BadCase` if it, or a link, leads out."""
    climbs = isinstance(name, str) and (name.startswith("/") or ".." in name.split("/"))
    if not isinstance(name, str) or not name or climbs or "\0" in name:
        raise BadCase(f"{brief(name)} is not a file name")
    path = folder / name
    if leads_out(path, folder):
        raise BadCase(f"{brief(name)} is a link out of the folder; copy what it means")
    return path


def majority(answers: Any) -> str:
    """The most frequent answer, of equally frequent ones the first.

    An answer is a text or a number, or an object with one in `answer`; null and empty ones do not
    count. A single one needs no list around it.
    """
    every = answers if isinstance(answers, list | tuple) else [answers]
    found = [one.get("answer") if isinstance(one, dict) else one for one in every]
    texts = [str(one) if _is_number(one) else one for one in found]
    given = [sound(text) for text in texts if isinstance(text, str) and text.strip()]
    if not given:
        raise BadCase("it has no answer")
    return Counter(given).most_common(1)[0][0]


def _is_number(value: Any) -> bool:
    finite = isinstance(value, int | float) and value - value == 0
    return finite and not isinstance(value, bool)


def held_back(records: Iterable[Any], split: str) -> list[Any]:
    """A split's share of records that come without splits."""
    return [
        record
        for number, record in enumerate(records, 1)
        if (number % HELD_BACK == 0) == (split == "validation")
    ]
