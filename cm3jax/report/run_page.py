"""`report.html` of a run: what is trained, on what, how its losses went, what it makes by now.

One page that is open offline, made from the files of the run directory and from illustrations,
which are drawn from the parameters in memory.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.data.corpus import banks_of
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import read_experiment
from cm3jax.io.files import read_log, write_atomic
from cm3jax.report.html import Html, Points, curves, facts, page, png, table, tag
from cm3jax.retrieval.pages import blank_written
from cm3jax.shapes import UInt8
from cm3jax.training import metrics
from cm3jax.training.best import best_validation, checkpoint_of, overfitting
from cm3jax.training.metrics import validation_name
from cm3jax.training.profile import Operation, read_operations

STRUCTURE = "Structure (breaks, ends, masks) counts in “all” and in neither modality."
"""What a reader of a decoder's curves wants to know."""

_DOCUMENTS = "documents_"
_WORTH = (
    "Nats per code of images that training never saw, behind no documents, those that retrieval "
    "finds by the text, right ones (other images of the subject) and wrong ones. A model that "
    "reads its documents is surest behind right ones."
)
_HITS = "How often a document's vector is nearest to its partner's text or image in a batch."

_BOOKKEEPING = {"step", "seconds", "flops", "a100_hours", "resumed_from", "batch_fingerprint"}
"""What is logged and is no curve."""


@dataclasses.dataclass(frozen=True, eq=False)
class Illustration:
    """A section of the page, drawn at a validation."""

    title: str
    body: Html
    pictures: Mapping[str, UInt8[np.ndarray, "_ _ 3"]] = dataclasses.field(default_factory=dict)
    """What of it is kept beside the page, by file name without suffix."""

    @classmethod
    def absent(cls, reason: str) -> "Illustration":
        """The section that says, in a sentence, why there are no images."""
        return cls("Images", tag("p", f"There are none: {reason}"))


def draw_report(run_dir: epath.PathLike, step: int, drawn: Sequence[Illustration]) -> None:
    """Keep the images of a step of training, then write the report that shows them."""
    folder = epath.Path(run_dir)
    keep_pictures(folder / "samples" / str(step), drawn)
    write_report(folder, drawn, step)


def is_reported(run_dir: epath.PathLike, step: int) -> bool:
    """Whether the report is that of a step of training, or a later one."""
    path = epath.Path(run_dir) / "report.html"
    found = re.search(rb'<main data-step="(\d+)"', read_log(path))
    return found is not None and int(found[1]) >= step


def write_report(
    run_dir: epath.PathLike, illustrations: Sequence[Illustration] = (), step: int | None = None
) -> None:
    """Write `report.html` from what the run directory holds by now, atomically.

    It needs only `config.json`; `UserError` if that is missing or damaged. `step` is the one that
    `is_reported` finds.
    """
    run_dir = epath.Path(run_dir)
    experiment = read_experiment(run_dir / "config.json")
    lines, lives = metrics.read_metrics(run_dir), metrics.lives(run_dir)
    names = dict.fromkeys(name for line in lines for name in line)
    points = {name: metrics.curve(lines, name) for name in names if name not in _BOOKKEEPING}
    points = {name: curve for name, curve in points.items() if curve}
    losses = {name: curve for name, curve in points.items() if name.startswith("loss")}
    documents = {name: curve for name, curve in points.items() if name.startswith(_DOCUMENTS)}
    hits = {name: curve for name, curve in points.items() if name.startswith("hit_")}
    shown = losses.keys() | documents.keys() | hits.keys()
    others = {name: curve for name, curve in points.items() if name not in shown}
    borders, last_rows = experiment.curriculum.starts[1:], experiment.curriculum.last_rows
    body = [tag("header", tag("h1", experiment.name), _state(experiment.train.steps, lines))]
    if losses:
        note = [tag("p", STRUCTURE)] if "loss_text" in losses else []
        plot = loss_curves(losses, "loss", borders)
        body.append(_section("Loss", *_best(run_dir, lines, last_rows), *note, plot))
    if documents:
        series = {name.removeprefix(_DOCUMENTS): curve for name, curve in documents.items()}
        about = tag("p", _WORTH)
        plot = curves(series, "nats per code", borders=borders)
        body.append(_section("What documents are worth", about, plot))
    if hits:
        body.append(_section("Hit rate", tag("p", _HITS), *_small_curves(hits, borders)))
    body += [_section(drawn.title, drawn.body) for drawn in illustrations]
    if others:
        plots = _small_curves(others, borders)
        body.append(_section("What else was logged", _folded("Curves", *plots)))
    body += _time_by_operation(run_dir)
    if lives:
        body.append(_section("Lives", table([_told(life) for life in lives])))
    config = (run_dir / "config.json").read_text("utf-8")
    body.append(_section("Experiment", _folded("config.json", tag("pre", config))))
    title = f"{experiment.name}: {experiment.learner}"
    path = run_dir / "report.html"
    write_atomic(path, page(title, tag("main", *body, data_step=step)))
    blank_written(path, banks_of(experiment.data))


def keep_pictures(folder: epath.PathLike, illustrations: Sequence[Illustration]) -> None:
    """Write the illustrations' images as PNG files; no folder where there are none."""
    for drawn in illustrations:
        for name, picture in drawn.pictures.items():
            write_atomic(epath.Path(folder) / f"{name}.png", png(picture))


def loss_curves(losses: Mapping[str, Points], unit: str, borders: Sequence[int] = ()) -> Html:
    """Losses by their names in `metrics.jsonl` in one plot, those of validation dashed."""
    legends = {
        name: name.removeprefix("loss_").replace("_", " ") if name != "loss" else "all"
        for name in sorted(_training(losses), reverse=True)  # text, image, then their sum
    }
    return curves(
        {legend: losses[name] for name, legend in legends.items()},
        unit,
        {
            legend: losses[validation_name(name)]
            for name, legend in legends.items()
            if validation_name(name) in losses
        },
        borders=borders,
    )


def _training(points: Mapping[str, Points]) -> list[str]:
    """The names that are no other's validation."""
    validations = {validation_name(name) for name in points}
    return [name for name in points if name not in validations]


def _small_curves(points: Mapping[str, Points], borders: Sequence[int]) -> list[Html]:
    plots = []
    for name in _training(points):
        twin = points.get(validation_name(name))
        lines = ({name: points[name]}, name, {name: twin} if twin else None)
        plots.append(curves(*lines, borders=borders))
    return plots


def _state(steps: int, lines: Sequence[Mapping[str, Any]]) -> Html:
    """How far the run is, and at what pace."""
    if not lines:
        return Html("")
    last = lines[-1]
    known = [
        ("step", f"{last['step']:,} of {steps:,}"),
    ]
    for title, name, scale, form in (
        ("hours of training", "seconds", 1 / 3600, ".2f"),
        ("the same in A100 hours at full rate", "a100_hours", 1, ".3g"),
        ("tokens per second", "tokens_per_second", 1, ",.0f"),
        ("share of the devices' peak (MFU)", "mfu", 1, ".1%"),
    ):
        if found := metrics.curve([last], name):  # not on the first steps, nor on every device
            known.append((title, f"{found[0][1] * scale:{form}}"))
    return facts(known)


_SHOWN = 20
"""Operations in the table."""


def _operations(operations: Sequence[Operation]) -> list[Html]:
    """What the traced steps spent their time on, and where the trace is."""
    rows = [
        {
            "operation": each.name,
            "ms per step": f"{each.milliseconds:.3f}",
            "share": f"{each.share:.1%}",
            "times per step": f"{each.count:.1f}",
        }
        for each in operations[:_SHOWN]
    ]
    rest = sum(each.share for each in operations[_SHOWN:])
    note = f" {len(operations) - _SHOWN} other kinds took {rest:.1%}." if rest else ""
    return [
        tag(
            "p",
            "Per device, as traced; what runs at once counts in full." + note + " Open the trace "
            "by `xprof profile`, or the .trace.json.gz in it at https://ui.perfetto.dev.",
        ),
        table(rows),
    ]


def _section(title: str, *body: str) -> Html:
    return tag("section", tag("h2", title), *body)


def _best(run_dir: epath.Path, lines: Sequence[Mapping[str, Any]], since: int) -> list[Html]:
    """Which validation was best, and whether the run overfits (`since` as in `overfitting`)."""
    best = best_validation(lines)
    if best is None:
        return []
    said = f"Lowest validation loss: {best.loss:.4f} at step {best.step:,}"
    if checkpoint_of(run_dir, best):
        said += f", kept as checkpoints/{best.step}"
    return [tag("p", f"{said}. {overfitting(lines, since).capitalize()}".strip())]


def _time_by_operation(run_dir: epath.Path) -> list[Html]:
    """The section of a traced run; of damaged times the reason, since no training ends for them."""
    try:
        operations = read_operations(run_dir)
    except UserError as error:
        return [_section("Time by operation", tag("p", str(error)))]
    return [_section("Time by operation", *_operations(operations))] if operations else []


def _told(life: Mapping[str, Any]) -> dict[str, Any]:
    """A life for the table: of its options only what differs from the life before."""
    kept = {name: value for name, value in life.items() if name not in ("options", "changes")}
    changes = life.get("changes")
    pairs = changes.items() if isinstance(changes, Mapping) else ()
    return kept | {"options that changed": ", ".join(f"{n}: {_arrow(pair)}" for n, pair in pairs)}


def _arrow(pair: Any) -> str:
    return " → ".join(map(str, pair)) if isinstance(pair, list) else str(pair)


def _folded(summary: str, *body: str) -> Html:
    return tag("details", tag("summary", summary), *body)
