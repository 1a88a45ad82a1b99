"""Control by documents: what is given decides what is drawn, filled in and named."""

from collections.abc import Callable

from experiments.claims.claim import Measured, Row, Scores, Target
from experiments.claims.control_infill import HOLES, infill
from experiments.claims.control_looks import five_documents
from experiments.claims.control_names import classify
from experiments.claims.harness import Bench


def _measure(bench: Bench) -> Measured:
    parts = (infill(bench), five_documents(bench), classify(bench))
    return Measured(
        scores={name: score for part in parts for name, score in part.scores.items()},
        figures=tuple(figure for part in parts for figure in part.figures),
    )


def _headline(scores: Scores) -> str:
    given, without, cell, five, shot = (
        scores[name].value
        for name in (
            "infill.rows.with",
            "infill.rows.without",
            "infill.cell.with",
            "five_documents.each_picture",
            "classify.one_shot",
        )
    )
    return (
        f"a masked emblem is filled as its document shows it: {given:.1%} ({without:.1%} without; "
        f"one masked cell: {cell:.1%}); five given documents, five images: {five:.1%} right; "
        f"one-shot names: {shot:.1%} right (chance 50 %)"
    )


def _within(name: str, reach: float) -> Callable[[Scores], bool]:
    return lambda scores: scores[name].value <= (scores[name].chance or 0.0) + reach


ROW = Row(
    name="control",
    title="Control by documents",
    claim="A document that is put in front steers the image: a masked part is filled in as the "
    "document shows it (a red jacket), one prompt gives other images with other documents. "
    "RA-CM3 names the class of an image from one image per class with made-up labels, by "
    "likelihood: 78 % right after one of each, 53 % without.",
    source="RA-CM3 (arXiv 2211.12561), through a reading note; CM3Leon (arXiv 2309.02591), section "
    "2.1; an article that explains it to practitioners",
    how="A memory-only emblem is masked and filled in, with a document of it in front, with none, "
    "and with one of another emblem. One prompt is drawn with five documents that show its name "
    "with five looks that no split knows. Then two such looks get a name each, by one document for "
    "each, a third image shows one of them, and the likelier of two captions names it.",
    seconds=720,
    measure=_measure,
    headline=_headline,
    targets=(
        Target(
            "rows of an emblem, filled in with a document: its pattern in at least 85 %",
            lambda scores: scores["infill.rows.with"].value >= 0.85,
        ),
        Target(
            "one cell of an emblem, filled in with a document: its pattern in at least 85 %",
            lambda scores: scores["infill.cell.with"].value >= 0.85,
        ),
        Target(
            "both without the document: at most chance and 5 %",
            lambda scores: all(_within(f"infill.{h}.without", 0.05)(scores) for h in HOLES),
        ),
        Target(
            "both with a document of another emblem: at most chance and 5 %",
            lambda scores: all(_within(f"infill.{h}.another", 0.05)(scores) for h in HOLES),
        ),
        Target(
            "five given documents, five correct images: for at least 95 % of prompts",
            lambda scores: scores["five_documents.all_five"].value >= 0.95,
        ),
        Target(
            "names from one document each: above chance, the intervals apart",
            lambda scores: scores["classify.one_shot"].interval[0] > 0.5,
        ),
    ),
    remark="Of infilling, training masked whole rows of cells in most images (cm3.picture_rows), "
    "so that a run which begins inside a row is rarely shown: one masked cell is filled right less "
    "often. Names are taken from the first document, whatever it shows (see right_first and "
    "wrong_first): in training documents stood in the order of the clauses that had found them, so "
    "that a caption's only emblem was always the first document's, and images need not be "
    "compared.",
)
