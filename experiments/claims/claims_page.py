"""The page of claims: what the paper says and what was measured, only from stored results."""

import functools
from collections.abc import Mapping, Sequence

from etils import epath

from cm3jax.evaluate.cases_page import figures_of, protocols, score_table, table_of
from cm3jax.io.files import require_replaceable, write_atomic
from cm3jax.report.html import Html, facts, is_titled, join, page, tag
from cm3jax.report.plots import Plot
from cm3jax.retrieval.pages import blank_written
from experiments.claims.claim import Result, Row, Table

_ABOUT = (
    "Each claim stands beside what this code measured with models of a million parameters on "
    "emblems, images that a program draws and reads back, so that every share is exact. The "
    "shipped weights were trained once: seeds are those of prompts and sampling, and the 95 % "
    "intervals are bootstraps over seeds and prompts. What does not reproduce is shown as such. "
    "Times are those of machines that other work may have shared."
)

_TITLE = "cm3jax: the paper's claims in miniature"


def write_page(
    folder: epath.PathLike,
    rows: Sequence[Row],
    results: epath.PathLike,
    banks: Sequence[epath.PathLike] = (),
) -> epath.Path:
    """Write `index.html` and the data behind it from the files `results/ROW.json`; its path.

    A row without a file is open, and what was taken out of `banks` is blanked. `UserError` for a
    file that is damaged, and rather than replace a page that is not this one.
    """
    folder, found = epath.Path(folder), {}
    ours = functools.partial(is_titled, title=_TITLE)
    require_replaceable(folder / "index.html", ours, "the page of claims")
    shown = [folder / "index.html"]
    for row in rows:
        path = epath.Path(results) / f"{row.name}.json"
        if path.exists():
            found[row.name] = Result.load(path)
            shown.append(folder / "data" / path.name)
            write_atomic(shown[-1], path.read_bytes())
            for plot in found[row.name].measured.plots:
                write_atomic(folder / _data(row, plot), plot.table())
    write_atomic(shown[0], claims_page(rows, found))
    for path in shown:
        blank_written(path, banks)
    return shown[0]


def claims_page(rows: Sequence[Row], results: Mapping[str, Result]) -> Html:
    """The whole page; `results` by the name of their row."""
    head = tag("header", tag("h1", "The paper's claims in miniature"), tag("p", _ABOUT))
    columns = ("claim", "the paper", "here", "reproduced")
    lines = [_line(row, results.get(row.name)) for row in rows]
    table = tag("div", table_of(columns, lines), class_="scroll")
    sections = [_section(row, results.get(row.name)) for row in rows]
    return page(_TITLE, tag("main", head, table, *sections))


def verdict(row: Row, result: Result | None) -> str:
    """Whether the claim was reproduced: yes, in part, no, or open."""
    if result is None:
        return "open"
    held = [target.holds(result.measured.scores) for target in row.targets]
    return "yes" if all(held) else "in part" if any(held) else "no"


def _data(row: Row, plot: Plot) -> str:
    return f"data/{row.name}-{plot.name}.csv"


def _line(row: Row, result: Result | None) -> tuple[str, ...]:
    here = f"to be measured by {row.command}" if result is None else row.headline(_scores(result))
    name = tag("a", row.title, href=f"#{row.name}")
    look = {"yes": "right", "no": "wrong"}.get(verdict(row, result))
    return name, row.claim, here, tag("span", verdict(row, result), class_=look)


def _scores(result: Result):
    return result.measured.scores


def _section(row: Row, result: Result | None) -> Html:
    parts = [
        tag("h2", row.title, id=row.name),
        tag("p", tag("b", "The paper: "), row.claim, " ", tag("small", row.source, class_="soft")),
        tag("p", tag("b", "Here: "), row.how),
    ]
    if result is None:
        minutes = f"about {row.seconds / 60:.0f} minutes on two CPU cores"
        parts.append(tag("p", "Open: nothing was measured yet. ", tag("code", row.command)))
        return tag("section", *parts, tag("p", f"It takes {minutes}.", class_="soft"))
    parts.append(_targets(row, result))
    if row.remark:
        parts.append(tag("p", row.remark))
    parts += [_table(table) for table in result.measured.tables]
    parts += [_plot(row, plot) for plot in result.measured.plots]
    for kind in dict.fromkeys(shown.kind for shown in result.measured.figures):
        parts.append(tag("h3", kind))
        parts += figures_of(result.measured.figures, kind)
    scores = _scores(result)
    every = tag("div", score_table(scores), class_="scroll")
    # Where nothing else is drawn, the scores are.
    is_drawn = bool(result.measured.plots)
    parts.append(_folded("Every score", every) if is_drawn else join(tag("h3", "Scores"), every))
    parts.append(_folded("Protocol of each score", *protocols(scores)))
    parts.append(_origin(row, result))
    return tag("section", *parts)


def _targets(row: Row, result: Result) -> Html:
    lines = []
    for target in row.targets:
        held = target.holds(_scores(result))
        mark = tag("span", "✓" if held else "✗", class_="right" if held else "wrong")
        lines.append(tag("li", mark, " ", target.what))
    return tag("ul", *lines, class_="targets")


def _table(table: Table) -> Html:
    whole = tag("div", table_of(table.columns, table.rows), class_="scroll")
    return join(tag("h3", table.title), whole)


def _plot(row: Row, plot: Plot) -> Html:
    link = tag("p", tag("a", "data", href=_data(row, plot)), class_="soft")
    return join(tag("h3", plot.title), plot.svg(), link)


def _origin(row: Row, result: Result) -> Html:
    seconds = result.seconds
    known = [
        ("command", result.command),
        ("measured on", result.hardware),
        ("time", f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"),
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ("weights", ", ".join(f"{part} {mark}" for part, mark in result.weights.items())),
    ]
    link = tag("p", tag("a", "all data of this row, images too", href=f"data/{row.name}.json"))
    return join(facts(known), link)


def _folded(summary: str, *body: str) -> Html:
    return tag("details", tag("summary", summary), *body)
