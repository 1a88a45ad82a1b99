"""The report: one HTML page from stored results, open offline, nothing computed here."""

from collections.abc import Iterable
from typing import Any

from cm3jax.evaluate.cases_page import figures_of, stamp_fields, value_in_words
from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Evaluation
from cm3jax.report.html import Html, facts, join, page, tag
from cm3jax.report.run_page import STRUCTURE, loss_curves

TITLE = "cm3jax: the whole path in miniature"
_NAMES = {"shipped": "Shipped weights", "trained_here": "Trained just now"}

# What each score asks, in the order in which the page tells it: key, title, explanation.
_SECTIONS = (
    (
        "heldout_emblem_accuracy",
        "An emblem that only the memory bank knows",
        "The name says nothing about the look, and no training document shows it: the image can "
        "only be right if the model reads a retrieved document. Right means that the reader finds "
        "the exact emblem and the exact scene around it.",
    ),
    (
        "heldout_pair_accuracy",
        "Two such emblems in one image",
        "One document shows one of them, so both are needed.",
    ),
    (
        "scene_accuracy",
        "Plain scenes",
        "Shapes, colours, sizes and places as the prompt says, without documents.",
    ),
    (
        "caption_exact",
        "Captions",
        "The caption is masked and infilled after the image; right means that it says "
        "exactly what the image shows.",
    ),
    (
        "infill_exact",
        "Infilling",
        "The lower half is blanked before encoding and its codes are sampled; the caption and the "
        "upper half determine it.",
    ),
    (
        "retrieval_hit_2",
        "Retrieval",
        "Whether the two best documents hold an image of the emblem that the query names or shows.",
    ),
    (
        "copied_share",
        "Copied images",
        "Images whose codes equal those of a document in front: low is good.",
    ),
    (
        "vqgan_read_exact",
        "Image tokenizer",
        "Images that the reader still reads exactly after encoding and decoding.",
    ),
)

_BESIDE = {
    True: "“Shipped weights” is the same model trained for hours by experiments/miniature.",
    False: "This checkout holds no shipped weights to put beside it.",
}


def report(evaluations: dict[str, Evaluation], metrics: dict[str, Any]) -> Html:
    """The whole page. `evaluations` by name (`shipped`, `trained_here`), as `metrics` has them."""
    parts = [_opening(evaluations)]
    parts.append(_score_table(evaluations))
    for key, title, explanation in _SECTIONS:
        shown = [
            join(
                tag("h3", _NAMES[name]),
                *figures_of(evaluation.figures, key),
            )
            for name, evaluation in evaluations.items()
            if any(shown.kind == key for shown in evaluation.figures)
        ]
        if shown:
            parts.append(tag("section", tag("h2", title), tag("p", explanation), *shown))
    parts.append(_losses(evaluations))
    parts.append(_origins(evaluations, metrics))
    return page(TITLE, tag("main", *parts))


def _opening(evaluations: dict[str, Evaluation]) -> Html:
    lines = [
        "Caption–image pairs were tokenised, indexed and learned; then one decoder drew, "
        "captioned and infilled. Every score counts free-running samples that a program reads "
        "back from their pixels, and was computed in this run."
    ]
    if "trained_here" in evaluations:
        lines.append(
            "“Trained just now” is the model that this run trained for a few minutes: it shows "
            "that the chain works, not what it can reach. " + _BESIDE["shipped" in evaluations]
        )
    return tag("header", tag("h1", "CM3Leon in miniature"), *(tag("p", line) for line in lines))


def _score_table(evaluations: dict[str, Evaluation]) -> Html:
    names = _ordered({name for evaluation in evaluations.values() for name in evaluation.scores})
    head = tag(
        "tr",
        tag("th", "Score"),
        *(tag("th", _NAMES[name], class_="number") for name in evaluations),
        tag("th", "Chance", class_="number"),
        tag("th", "Protocol"),
    )
    rows = [_score_row(name, evaluations) for name in names]
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("section", tag("h2", "Scores"), tag("div", table, class_="scroll"))


def _score_row(name: str, evaluations: dict[str, Evaluation]) -> Html:
    scores = [evaluation.scores.get(name) for evaluation in evaluations.values()]
    known = next(score for score in scores if score is not None)
    return tag(
        "tr",
        tag("td", _title(name)),
        *(_score_cell(score) for score in scores),
        tag("td", "–" if known.chance is None else _percent(known.chance), class_="number"),
        tag("td", known.protocol.regime, tag("small", known.protocol.documents)),
    )


def _ordered(names: Iterable[str]) -> list[str]:
    """Names in the page's order, those without a section last."""
    keys = [key for key, _, _ in _SECTIONS]

    def place(name: str) -> tuple[int, str]:
        key = name.split(".")[0]
        return (keys.index(key) if key in keys else len(keys), name)

    return sorted(names, key=place)


def _title(name: str) -> Html:
    title = next((title for key, title, _ in _SECTIONS if name.split(".")[0] == key), name)
    return join(title, tag("small", name))


def _score_cell(score: Score | None) -> Html:
    if score is None:
        return tag("td", "–", class_="number")
    low, high = score.interval
    spread = f"{100 * low:.1f}–{100 * high:.1f}, n = {score.n}"
    return tag("td", _percent(score.value), tag("small", spread), class_="number")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "< 0.1 %"


def _losses(evaluations: dict[str, Evaluation]) -> Html:
    plots = []
    for name, evaluation in evaluations.items():
        if evaluation.losses:
            plots += [
                tag("h3", _NAMES[name]),
                loss_curves(evaluation.losses, "loss in nats per token"),
            ]
    if not plots:
        return Html("")
    return tag("section", tag("h2", "Loss by modality"), tag("p", STRUCTURE), *plots)


def _origins(evaluations: dict[str, Evaluation], metrics: dict[str, Any]) -> Html:
    found = [("versions", _pairs(metrics["versions"]))]
    found.append(("seconds per stage", _pairs(metrics["seconds"])))
    for name, evaluation in evaluations.items():
        found.append((f"{_NAMES[name]}: run", evaluation.run))
        found.append((f"{_NAMES[name]}: weights", _pairs(evaluation.weights)))
        found.append((f"{_NAMES[name]}: images", evaluation.pictures))
    stamps = [
        tag("details", tag("summary", f"{_NAMES[name]}: {score}"), _stamp(evaluation.scores[score]))
        for name, evaluation in evaluations.items()
        for score in _ordered(evaluation.scores)
    ]
    return tag(
        "section",
        tag("h2", "Where this comes from"),
        facts(found),
        tag("h3", "Protocol of each score"),
        *stamps,
    )


def _stamp(score: Score) -> Html:
    return facts([("regime", score.protocol.regime), *stamp_fields(score.protocol)])


def _pairs(values: dict[str, Any]) -> str:
    return value_in_words(values)
