"""A small page for an evaluation: a table, the worst and best cases as images, the protocols."""

from collections.abc import Mapping, Sequence
from typing import Any

from cm3jax.evaluate.protocol import Protocol, Score
from cm3jax.evaluate.results import Cell, Figure
from cm3jax.report.html import Html, cell, facts, figure, join, page, tag
from cm3jax.report.plots import share_mark


def cases_page(
    title: str, about: str, table: Html, figures: Sequence[Figure], scores: Mapping[str, Score]
) -> Html:
    """The whole page; figures are grouped by kind."""
    parts = [tag("h1", title), tag("p", about), tag("div", table, class_="scroll")]
    for kind in dict.fromkeys(shown.kind for shown in figures):
        drawn = figures_of(figures, kind)
        parts.append(tag("section", tag("h2", kind), *drawn))
    parts.append(tag("h2", "Protocols"))
    parts += protocols(scores)
    return page(f"cm3jax: {title}", tag("main", *parts, data_page="scores"))


def is_cases_page(content: bytes) -> bool:
    """Whether a file is such a page; earlier versions had no mark but this heading."""
    return b'<main data-page="scores">' in content or b"<h2>Protocols</h2>" in content


_CHOSEN = (
    "Not a sample: cases chosen to show what goes wrong and what goes right; scores count all."
)
"""The note for results that were stored without one."""


def figures_of(figures: Sequence[Figure], kind: str) -> list[Html]:
    """The figures of a kind, after a line that says how they were chosen."""
    own = [one for one in figures if one.kind == kind]
    judged = any(cell.correct is not None for one in own for cell in one.cells)
    notes = dict.fromkeys(one.note or (_CHOSEN if judged else "") for one in own)
    lines = [tag("p", note, class_="soft") for note in notes if note]
    return lines + [figure(one.prompt, *map(figure_cell, one.cells)) for one in own]


def score_table(scores: Mapping[str, Score]) -> Html:
    """Every score with its 95 % interval, n, chance and regime; shares are drawn."""
    names = ("score", "value", "95 %", "0 to 1, chance", "n", "chance", "protocol")
    return table_of(names, [_row(name, score) for name, score in scores.items()])


def protocols(scores: Mapping[str, Score]) -> list[Html]:
    """The stamp of every score, folded."""
    return [_protocol(name, score) for name, score in scores.items()]


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Rows of texts under the names of their columns."""
    head = tag("tr", *(tag("th", name) for name in columns))
    body = [tag("tr", *(tag("td", part) for part in row)) for row in rows]
    return tag("table", tag("thead", head), tag("tbody", *body))


def figure_cell(shown: Cell) -> Html:
    """An image or a text with its verdict."""
    more = []
    if shown.correct is not None:
        mark, class_ = ("✓ right", "right") if shown.correct else ("✗ wrong", "wrong")
        more.append(join(" ", tag("span", mark, class_=class_)))
    if shown.text:
        more.append(join(tag("br"), tag("q", shown.text)))
    return cell(shown.label, *more, picture=shown.picture, alt=shown.text, document=shown.document)


def _row(name: str, score: Score) -> tuple[str, ...]:
    low, high = score.interval
    chance = "–" if score.chance is None else f"{score.chance:.2g}"
    regime = f"{score.protocol.regime}; documents: {score.protocol.documents}"
    # Other figures have no chance, nor an end of their scale.
    mark = "" if score.chance is None else share_mark(score.value, score.interval, score.chance)
    return name, f"{score.value:.3f}", f"{low:.3f}–{high:.3f}", mark, str(score.n), chance, regime


def stamp_fields(protocol: Protocol) -> list[tuple[str, str]]:
    """Every field of a stamp in words."""
    return [(key.replace("_", " "), value_in_words(value)) for key, value in vars(protocol).items()]


def value_in_words(value: Any) -> str:
    """A value for a reader: few digits, and a mapping as `name value` after `name value`."""
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_in_words(one)}" for name, one in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _protocol(name: str, score: Score) -> Html:
    stamp = [("regime", score.protocol.regime), ("n", str(score.n))]
    stamp += stamp_fields(score.protocol)
    return tag("details", tag("summary", name), facts(stamp))
