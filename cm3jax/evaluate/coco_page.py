"""The result of the COCO protocol as a table with the paper's columns, and as a page."""

from collections.abc import Sequence

from cm3jax.evaluate.coco_fid import Model, Outcome
from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Figure
from cm3jax.html import Html, cell, facts, figure, join, page, tag

COLUMNS = (
    "model",
    "retrieval in training",
    "responsible",
    "documents",
    "samples",
    "dataset size",
    "model size",
    "FID (95 %)",
    "KID × 1000",
    "CLIP",
)
_DASH = "–"


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """One row of cells under `COLUMNS` for every way that pictures were drawn."""
    names = [name for name in outcome.scores if name.split(".")[-1] == "fid"]
    return [_row(outcome.model, outcome.scores, name.removesuffix("fid")) for name in names]


def _row(model: Model, scores: dict[str, Score], prefix: str) -> tuple[str, ...]:
    fid = scores[f"{prefix}fid"]
    known = fid.protocol.documents != "not known"
    low, high = fid.interval
    kid, clip = scores.get(f"{prefix}kid"), scores.get(f"{prefix}clip")
    return (
        model.name,
        _DASH if model.retrieval is None else ("yes" if model.retrieval else "no"),
        _DASH if model.responsible is None else f"{100 * model.responsible:.0f} % licensed",
        str(fid.protocol.retrieved) if known else _DASH,
        str(fid.protocol.samples) if known else _DASH,
        _DASH if model.records is None else _short(model.records),
        _DASH if model.parameters is None else _short(model.parameters),
        f"{fid.value:.2f} ({low:.2f}–{high:.2f})",
        _DASH if kid is None else f"{1000 * kid.value:.2f}",
        _DASH if clip is None else f"{clip.value:.3f}",
    )


def _short(count: int) -> str:
    """`1.0M`, `6.7B`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def text_table(outcome: Outcome) -> str:
    """The table for a terminal."""
    lines = [COLUMNS, *rows(outcome)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def report(outcome: Outcome) -> Html:
    """The whole page."""
    head = tag("tr", *(tag("th", name) for name in COLUMNS))
    body = [tag("tr", *(tag("td", part) for part in row)) for row in rows(outcome)]
    table = tag("table", tag("thead", head), tag("tbody", *body))
    parts = [
        tag("h1", "Pictures for COCO captions"),
        tag(
            "p",
            "FID and KID compare the pictures' Inception features with those of real pictures; "
            "lower is better, and figures compare only under one protocol. CLIP is the mean cosine "
            "of caption and picture.",
        ),
        tag("div", table, class_="scroll"),
    ]
    kinds = list(dict.fromkeys(shown.kind for shown in outcome.figures))
    for kind in kinds:
        parts.append(_cases(kind, [shown for shown in outcome.figures if shown.kind == kind]))
    parts.append(tag("h2", "Protocols"))
    parts += [_protocol(name, score) for name, score in outcome.scores.items()]
    return page("cm3jax: COCO captions", tag("main", *parts))


def _cases(kind: str, shown: Sequence[Figure]) -> Html:
    *name, end = kind.split(".")
    where = " ".join(name) or "the pictures"
    drawn = [
        figure(one.prompt, *(cell(c.label, picture=c.picture, alt=one.prompt) for c in one.cells))
        for one in shown
    ]
    return tag("section", tag("h2", f"The {end} cases by CLIP: {where}"), *drawn)


def _protocol(name: str, score: Score) -> Html:
    stamp = [("regime", score.protocol.regime), ("n", str(score.n))]
    stamp += [(key, str(value)) for key, value in vars(score.protocol).items()]
    return tag("details", tag("summary", name), join(facts(stamp)))
