"""A small page for an evaluation: a table, the worst and best cases as pictures, the protocols."""

from collections.abc import Mapping, Sequence

from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Cell, Figure
from cm3jax.html import Html, cell, facts, figure, join, page, tag
from cm3jax.plots import share_mark


def cases_page(
    title: str, about: str, table: Html, figures: Sequence[Figure], scores: Mapping[str, Score]
) -> Html:
    """The whole page; figures stand under their kinds."""
    parts = [tag("h1", title), tag("p", about), tag("div", table, class_="scroll")]
    for kind in dict.fromkeys(shown.kind for shown in figures):
        drawn = [
            figure(one.prompt, *map(figure_cell, one.cells)) for one in figures if one.kind == kind
        ]
        parts.append(tag("section", tag("h2", kind), *drawn))
    parts.append(tag("h2", "Protocols"))
    parts += protocols(scores)
    return page(f"cm3jax: {title}", tag("main", *parts))


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
    """A picture or a text with its verdict."""
    more = []
    if shown.correct is not None:
        mark, class_ = ("✓ right", "right") if shown.correct else ("✗ wrong", "wrong")
        more.append(join(" ", tag("span", mark, class_=class_)))
    if shown.text:
        more.append(join(tag("br"), tag("q", shown.text)))
    return cell(shown.label, *more, picture=shown.picture, alt=shown.text)


def _row(name: str, score: Score) -> tuple[str, ...]:
    low, high = score.interval
    chance = "–" if score.chance is None else f"{score.chance:.2g}"
    regime = f"{score.protocol.regime}; documents: {score.protocol.documents}"
    # Other figures have no chance, nor an end of their scale.
    mark = "" if score.chance is None else share_mark(score.value, score.interval, score.chance)
    return name, f"{score.value:.3f}", f"{low:.3f}–{high:.3f}", mark, str(score.n), chance, regime


def _protocol(name: str, score: Score) -> Html:
    stamp = [("regime", score.protocol.regime), ("n", str(score.n))]
    stamp += [(key.replace("_", " "), str(value)) for key, value in vars(score.protocol).items()]
    return tag("details", tag("summary", name), facts(stamp))
