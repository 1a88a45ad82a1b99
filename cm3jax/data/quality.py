"""The quality rules of `data`: the same for raw pairs, documents, tasks and generated records."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cm3jax.config import DataConfig
from cm3jax.io.texts import brief

RULES = ("min_side", "max_aspect", "min_words", "max_words", "max_watermark", "max_unsafe")
"""The fields of `data` that are rules, besides `licences`."""
_SCORES = {
    "max_watermark": ("watermark", "pwatermark"),
    "max_unsafe": ("unsafe", "punsafe", "nsfw"),
}
"""The columns that each rule on a score reads: the first that a record has."""
_WORDS = {"UNLIKELY": 0.0, "UNSURE": 0.5, "NSFW": 1.0}  # LAION's column


def require_quality(
    data: DataConfig,
    licence: str,
    texts: Sequence[str],
    sizes: Iterable[tuple[int, int]],
    columns: Mapping[str, Any] | None = None,
) -> None:
    """Raise `ValueError` with the reason for a record that a rule of `data` leaves out.

    `sizes` are the width and height of its images as stored, `columns` what else is known of it,
    with names in lower case. What a column doesn't say as a number never passes a rule on it.
    """
    if data.licences and licence not in data.licences:
        raise ValueError(f"its licence {brief(licence)} is not among data.licences")
    for rule, names in _SCORES.items():
        most = getattr(data, rule)
        if most < 1.0 and (score := _score(columns or {}, names)) > most:
            raise ValueError(f"its {names[0]} score {score:g} is above {most:g}")
    for size in sizes:
        _require_sides(*size, data)
    _require_words(texts, data)


def idle_rules(data: DataConfig, known: Iterable[str] = ()) -> str:
    """A sentence on the rules that leave nothing out, since records have no such number; `known`
    are the columns that they have. Empty without such rules."""
    columns = set(known)
    idle = [
        f"data.{rule}"
        for rule, names in _SCORES.items()
        if getattr(data, rule) < 1.0 and not columns & set(names)
    ]
    if not idle:
        return ""
    verb = "leaves" if len(idle) == 1 else "leave"
    return f"{' and '.join(idle)} {verb} nothing out: the records have no such score"


def _require_words(texts: Sequence[str], data: DataConfig) -> None:
    words = sum(len(text.split()) for text in texts)
    if texts and words < data.min_words:
        raise ValueError(f"its text has {words} words, fewer than data.min_words={data.min_words}")
    if data.max_words and words > data.max_words:
        raise ValueError(f"its text has {words} words, more than data.max_words={data.max_words}")


def _require_sides(width: int, height: int, data: DataConfig) -> None:
    short, long = sorted((width, height))
    size = f"the image has {width}x{height} pixels"
    if short < data.min_side:
        raise ValueError(f"{size}, a side below data.min_side={data.min_side}")
    if data.max_aspect and long > data.max_aspect * short:
        raise ValueError(f"{size}, longer than data.max_aspect={data.max_aspect:g} allows")


def _score(columns: Mapping[str, Any], names: tuple[str, ...]) -> float:
    """The first of the columns as a number from 0 to 1; 0 where none of them is there.

    Raises `ValueError` for what can't be read as a number: it never passes a rule.
    """
    for name in names:
        if name not in columns:
            continue
        value = columns[name]
        if isinstance(value, str):
            value = _WORDS.get(value.strip().upper(), value)
        readable = isinstance(value, str | numbers.Number)
        try:
            number = float(value) if readable else math.nan
        except (TypeError, ValueError, OverflowError):  # words, complex numbers, huge ones
            number = math.nan
        if math.isnan(number):
            raise ValueError(f"its {name} {brief(value)} is not a number")
        return number
    return 0.0
