"""What more compute buys, with documents in front and without."""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from cm3jax.emblems import ProbePrompt, caption, confirms_emblems, draw_scene
from cm3jax.emblems.reader import nearest_patches
from cm3jax.emblems.sample import at_home, palm, plain_scene, word
from cm3jax.emblems.scene import FINGERS, Scene
from cm3jax.emblems.wording import relations
from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Cell, Figure
from cm3jax.report.plots import Plot, Point
from cm3jax.training import metrics
from cm3jax.training.hardware import a100_hours
from experiments.claims.claim import Measured, Row, Scores, Table, Target, percent
from experiments.claims.distance import Distance
from experiments.claims.harness import Bench
from experiments.claims.model_eval import Every, ModelEval

FAMILIES = {"cm3leon": "CM3Leon", "cm3": "CM3", "dalle": "DALL-E", "parti": "Parti"}
"""Experiments `miniature/rivals/FAMILY` and their names."""
SIZES = {"small": "_small", "medium": "_medium", "large": ""}
"""What follows a family's name."""
_PAPER = (
    ("CM3Leon-350M", "14.20", 0.373e9, 1.4e12),
    ("CM3Leon-760M", "6.61", 0.786e9, 1.9e12),
    ("CM3Leon-7B", "4.88", 6.73e9, 2.4e12),
)
"""FID on MS-COCO with two documents, parameters, tokens of training."""
_OTHERS = (("CM3, 2.7B", "29.5"), ("DALL-E, 12B", "28"), ("Parti, 20B", "7.23"))
"""Models whose hours are only in figure 2."""
RIVALS = tuple(FAMILIES)[1:]
COUNTED = {
    "word.letters": ("Words by their letters", tuple(range(1, 9))),
    "scene.clauses": ("Scenes by their clauses", (1, 2, 3, 4, 6, 8, 10, 12)),
    "palm.fingers": ("Palms by their fingers", tuple(FINGERS)),
}
"""Groups of prompts: what they are, and numbers."""
_PER_MEMBER = 16
"""So many members of groups share a seed's prompts."""
_SHOWN = 6
"""Prompts of the grid."""


def _measure(bench: Bench) -> Measured:
    every, distance = _questions(bench), Distance(bench, "heldout")
    truth = nearest_patches(np.stack([p.image for asked in every["heldout"] for p in asked]))[0]
    scores: dict[str, Score] = {}
    exams: dict[str, ModelEval] = {}
    for family in FAMILIES:
        for size, suffix in SIZES.items():
            trained = bench.trained(f"miniature/rivals/{family}{suffix}")
            exam = exams[f"{family}.{size}"] = ModelEval(f"{family}.{size}", trained, every)
            for kind, asked in every.items():
                if _is_short_enough(exam, asked):
                    exam.draw(kind, _documents(kind, family))
            scores |= exam.scores | _beside(exam, distance, truth, _asked("heldout", family))
    tables = (_sizes(scores, exams), _savings(scores), _papers())
    return Measured(scores, _plots(scores), tables, _grid(exams, every["heldout"][0]))


def _documents(kind: str, family: str) -> int:
    """How many documents a family retrieves: nothing in the bank is near enough to a scene without
    emblems (`retrieval.relevance_floor`), as in training.
    """
    return int(family == "cm3leon" and "heldout" in kind)


def _asked(kind: str, family: str) -> str:
    """The name of a kind's score."""
    return f"{kind}.docs_{_documents(kind, family)}"


def _is_short_enough(exam: ModelEval, every: Every) -> bool:
    """Whether a model reads these prompts to their end: Parti's encoder takes a few pieces."""
    experiment, encode = exam.experiment, exam.bench.generator.text.encode
    if experiment.learner != "parti":
        return True
    most = experiment.parti.text_tokens - 1  # and the break behind them
    return all(len(encode(prompt.text)) <= most for asked in every for prompt in asked)


def _beside(exam: ModelEval, distance: Distance, truth: np.ndarray, drawn: str) -> dict[str, Score]:
    """FID, the share of cells that are right, and the hours of training."""
    name, bench = exam.name, exam.bench
    protocol, pictures = exam.scores[f"{name}.{drawn}"].protocol, exam.drawn[drawn]
    every = pictures.reshape(-1, *pictures.shape[2:])
    cells = (nearest_patches(every)[0] == truth).mean(-1).reshape(pictures.shape[:2])
    of_cells = dataclasses.replace(protocol, reader="emblems.read: the cell's nearest patch")
    hours = np.full((1, 1), metrics.read_metrics(bench.run)[-1]["a100_hours"])
    of_hours = dataclasses.replace(protocol, reader="operations of training at an A100's full rate")
    return {
        f"{name}.fid": distance.score(f"{name}.fid", every, protocol),
        f"{name}.cells": bench.mean(f"{name}.cells", cells, of_cells),
        f"{name}.a100_hours": bench.mean(f"{name}.a100_hours", hours, of_hours),
    }


# ----------------------------------------------------------------------------------------- prompts


_GROUPS: dict[str, tuple[Callable[[random.Random], Scene], Callable[[Scene, int], bool]]] = {
    "word.letters": (
        lambda rng: at_home("prompts", lambda: word(rng)),
        lambda scene, letters: len(scene.word or "") == letters,
    ),
    "scene.clauses": (
        lambda rng: at_home("prompts", lambda: plain_scene(rng)),
        lambda scene, clauses: 0 <= clauses - len(scene.shapes) <= len(relations(scene)),
    ),
    "palm.fingers": (palm, lambda scene, fingers: scene.fingers == fingers),
}
"""What draws a group's scenes, and whether one belongs to a member of the group."""


def _questions(bench: Bench) -> dict[str, Every]:
    """Held-out emblems; words by length, scenes by clauses, palms by fingers."""
    each = max(1, bench.prompts // _PER_MEMBER)
    return {"heldout": bench.asked("heldout")} | {
        f"{group}_{number}": [
            [_prompt(group, number, seed * each + i, bench.size) for i in range(each)]
            for seed in range(bench.seeds)
        ]
        for group, (_, numbers) in COUNTED.items()
        for number in numbers
    }


def _prompt(group: str, number: int, index: int, size: int) -> ProbePrompt:
    rng = random.Random(f"claims sizes {group} {number} {index}")
    draws, fits = _GROUPS[group]
    while not fits(scene := draws(rng), number):
        continue
    claims = number - len(scene.shapes) if group == "scene.clauses" else 0
    text = caption(scene, tuple(rng.sample(relations(scene), claims)))
    return ProbePrompt(f"{group}_{number}-{index}", "scene", text, scene, draw_scene(scene, size))


# ------------------------------------------------------------------------------ tables and figures


def _plots(scores: Scores) -> tuple[Plot, ...]:
    against_hours = [
        _against_hours(scores, name, title, unit)
        for name, title, unit in (
            ("nats", "Loss on pictures of held-out emblems", "nats per code"),
            ("fid", "FID by our CLIP's picture features", "FID (lower is better)"),
            ("cells", "Cells of a held-out emblem's picture that are right", "share"),
        )
    ]
    counted = [
        _by_number(scores, group, title, numbers) for group, (title, numbers) in COUNTED.items()
    ]
    return (*against_hours, *counted)


def _told(what: str, family: str) -> str:
    return _asked("nats.picture.heldout", family) if what == "nats" else what


def _against_hours(scores: Scores, what: str, title: str, unit: str) -> Plot:
    series = {
        called: tuple(
            Point(1e6 * _hours(scores, family, size), score.value, score.interval)
            for size in SIZES
            for score in [scores[f"{family}.{size}.{_told(what, family)}"]]
        )
        for family, called in FAMILIES.items()
    }
    hours, share = "millionths of an A100 hour", what == "cells"  # which may be 0
    return Plot(what, title, hours, unit, series, log_x=True, log_y=not share)


def _by_number(scores: Scores, group: str, title: str, numbers: Sequence[int]) -> Plot:
    """Right answers by number, of CM3Leon's sizes and of the largest others."""
    shown = {("cm3leon", size): f"CM3Leon, {size}" for size in SIZES}
    shown |= {(rival, "large"): f"{FAMILIES[rival]}, large" for rival in RIVALS}
    series = {
        legend: tuple(
            Point(number, score.value, score.interval)
            for number in numbers
            if (score := _counted(scores, family, size, f"{group}_{number}"))
        )
        for (family, size), legend in shown.items()
    }
    what, x = group.split(".")
    return Plot(what, title, x, "share that is right", series)


def _counted(scores: Scores, family: str, size: str, kind: str) -> Score | None:
    """The share of a kind that is right, None where a model cannot read what is asked."""
    return scores.get(f"{family}.{size}.{_asked(kind, family)}")


def _sizes(scores: Scores, exams: dict[str, ModelEval]) -> Table:
    rows = []
    for name, exam in exams.items():
        family, size = name.split(".")
        groups = [
            [_counted(scores, family, size, f"{group}_{number}") for number in numbers]
            for group, (_, numbers) in COUNTED.items()
        ]
        shares = [[share.value for share in each if share] for each in groups]
        rows.append(
            (
                f"{FAMILIES[family]}, {size}",
                f"{exam.bench.parameters:,}",
                f"{metrics.read_metrics(exam.bench.run)[-1]['seconds'] / 60:.0f}",
                f"{_hours(scores, family, size) * 1e6:.0f}",
                f"{scores[f'{name}.' + _asked('nats.picture.heldout', family)].value:.2f}",
                f"{scores[f'{name}.fid'].value:.1f}",
                percent(scores[f"{name}.{_asked('heldout', family)}"]),
                f"{scores[f'{name}.cells'].value:.1%}",
                *(f"{sum(each) / len(each):.1%}" for each in shares),
            )
        )
    columns = (
        *("model", "parameters", "minutes", "millionths of an A100 hour"),
        *("nats per code of a held-out emblem's picture", "its FID"),
        *("the emblem right", "the picture's cells", "words", "scenes", "palms"),
    )
    return Table("What each size does", columns, tuple(rows))


def _hours(scores: Scores, family: str, size: str) -> float:
    return scores[f"{family}.{size}.a100_hours"].value


def hours_at(points: Sequence[tuple[float, float]], fid: float) -> tuple[str, float]:
    """Hours at which a family's FID falls to `fid`; it does so about, below or above them.

    `points` are hours and FID of its sizes; between neighbours both logarithms are a line.
    """
    points = sorted(points)
    if points[0][1] <= fid:
        return "below", points[0][0]
    for (least, above), (most, below) in itertools.pairwise(points):
        if below <= fid:
            share = math.log(above / fid) / math.log(above / below)
            return "about", least * (most / least) ** share
    return "above", points[-1][0]


def saving(scores: Scores, rival: str) -> tuple[str, float, float]:
    """A rival's lowest FID, and how many times CM3Leon's compute it took: about, above or below."""
    value, hours = min(
        (scores[f"{rival}.{size}.fid"].value, _hours(scores, rival, size)) for size in SIZES
    )
    curve = [
        (_hours(scores, "cm3leon", size), scores[f"cm3leon.{size}.fid"].value) for size in SIZES
    ]
    bound, own = hours_at(curve, value)
    opposite = {"about": "about", "below": "above", "above": "below"}
    return opposite[bound], hours / own, value


def _savings(scores: Scores) -> Table:
    rows = []
    for rival in RIVALS:
        bound, times, fid = saving(scores, rival)
        rows.append((FAMILIES[rival], f"{fid:.1f}", f"{bound} {times:.2g}"))
    columns = ("rival", "its lowest FID", "its compute over CM3Leon's there")
    return Table("Compute at equal FID", columns, tuple(rows))


def _papers() -> Table:
    rows = tuple(
        (name, fid, f"{tokens / 1e12:.1f} T", f"{a100_hours(6 * parameters * tokens):,.0f}")
        for name, fid, parameters, tokens in _PAPER
    )
    others = tuple((name, fid, "", "no figure in words") for name, fid in _OTHERS)
    columns = ("model", "FID", "tokens", "A100 hours at full rate, 6 per parameter and token")
    return Table("The papers' own: MS-COCO, CM3Leon with two documents", columns, rows + others)


def _grid(exams: dict[str, ModelEval], asked: Sequence[ProbePrompt]) -> tuple[Figure, ...]:
    """The same prompts across sizes: held-out emblems, each family in a line."""
    figures = []
    first = exams["cm3leon.large"]
    shown = first.retrieved(asked[:_SHOWN], 1)
    for place, prompt in enumerate(asked[:_SHOWN]):
        cells = [first.bench.best_cell(shown[place])]
        for name, exam in exams.items():
            family, size = name.split(".")
            image = exam.drawn[_asked("heldout", family)][0, place]
            (right,) = confirms_emblems(image[None], [prompt.scene])
            cells.append(Cell.of(f"{FAMILIES[family]}, {size}", image, correct=right))
        cells.append(Cell.of("as it should be", prompt.image))
        figures.append(Figure("The same prompts across sizes", prompt.text, tuple(cells)))
    return tuple(figures)


# ----------------------------------------------------------------------------------------- the row


def _headline(scores: Scores) -> str:
    lowest = " / ".join(
        f"{min(scores[f'{family}.{size}.fid'].value for size in SIZES):.1f}" for family in FAMILIES
    )
    savings = ", ".join(
        f"{FAMILIES[rival]} {bound} {times:.2g}"
        for rival in RIVALS
        for bound, times, _ in [saving(scores, rival)]
    )
    return (
        f"lowest FID {lowest} by {' / '.join(FAMILIES.values())}; to reach theirs, the rivals take "
        f"this many times CM3Leon's compute: {savings}"
    )


def _falls(scores: Scores, what: str) -> bool:
    """Whether CM3Leon's figure falls from size to size, the intervals apart."""
    name = _told(what, "cm3leon")
    intervals = [scores[f"cm3leon.{size}.{name}"].interval for size in SIZES]
    return all(more[1] < less[0] for less, more in itertools.pairwise(intervals))


def _cheaper(scores: Scores, rival: str) -> bool:
    bound, times, _ = saving(scores, rival)
    return bound != "below" and times > 1


ROW = Row(
    name="sizes",
    title="Sizes and compute",
    claim="CM3Leon reaches its FID with a fifth of the training compute of comparable methods, and "
    "what its three sizes lack is compute: validation losses still fall when training ends, and "
    "FID falls from 14.20 over 6.61 to 4.88.",
    source="CM3Leon (arXiv 2309.02591), abstract, figures 2 and 3, table 1",
    how="CM3Leon, CM3, DALL-E and Parti in three sizes each, trained from one corpus with as many "
    "tokens (`experiments/miniature/rivals`), draw held-out emblems, words by their letters, "
    "scenes by their clauses and palms by their fingers; CM3Leon draws emblems with the one "
    "document that it retrieves. Hours are those of an A100 at its full rate, by the operations of "
    "training.",
    seconds=7200,
    trains=tuple(
        f"miniature/rivals/{family}{suffix}" for family in FAMILIES for suffix in SIZES.values()
    ),
    measure=_measure,
    headline=_headline,
    targets=(
        Target(
            "CM3Leon's loss falls from size to size, the intervals apart",
            lambda s: _falls(s, "nats"),
        ),
        Target("its FID falls from size to size, the intervals apart", lambda s: _falls(s, "fid")),
        *(
            Target(
                f"it reaches the lowest FID of {FAMILIES[rival]} with less compute",
                functools.partial(_cheaper, rival=rival),
            )
            for rival in RIVALS
        ),
        Target(
            "the largest CM3Leon draws held-out emblems more often than the largest others, the "
            "intervals apart",
            lambda s: all(
                s[f"{rival}.large.heldout.docs_0"].interval[1]
                < s["cm3leon.large.heldout.docs_1"].interval[0]
                for rival in RIVALS
            ),
        ),
    ),
    remark="CM3Leon's medium size already reads documents and has nothing left to gain there: the "
    "large one gains words and scenes instead, which it draws from memory. The smallest, of two "
    "layers, does not read. Without documents a new emblem cannot be drawn, and FID falls by what "
    "surrounds it; its loss even rises with size, as guesses become surer. DALL-E is ahead in "
    "words, DALL-E and Parti are in scenes, of which Parti's encoder takes captions up to four "
    "clauses. All sizes see as many tokens, so that compute is size; the compute at equal FID lies "
    "between the small CM3Leon and the medium one, where reading begins, and is a line's guess. "
    "Only twenty palms exist, and training shows them all.",
)
