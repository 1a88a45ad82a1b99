"""The result of the COCO protocol as a table with the paper's columns, and as a page."""

from cm3jax.evaluate.cases_page import cases_page, table_of
from cm3jax.evaluate.coco_fid import Model, Outcome
from cm3jax.evaluate.protocol import Score
from cm3jax.report.html import Html

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
    """One row of cells under `COLUMNS` for every way that images were drawn."""
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
        f"{fid.value:.4g} ({low:.4g}–{high:.4g})",
        _DASH if kid is None else f"{1000 * kid.value:.4g}",
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
    return cases_page(
        "Images for COCO captions",
        "FID and KID compare the images' Inception features with those of real images; lower "
        "is better, and figures compare only under one protocol. CLIP is the mean cosine of "
        "caption and image.",
        table_of(COLUMNS, rows(outcome)),
        outcome.figures,
        outcome.scores,
    )
