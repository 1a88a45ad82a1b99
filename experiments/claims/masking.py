"""What is masked decides what a model can be asked for."""

import numpy as np

from cm3jax.config import CM3Config, VocabConfig
from cm3jax.evaluate.protocol import NO_SAMPLING, Score
from cm3jax.report.plots import Plot, Point
from cm3jax.sequence.spans import draw_spans
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Bool
from experiments.claims.claim import Measured, Row, Scores, Table, Target
from experiments.claims.harness import Bench
from experiments.claims.model_eval import ModelEval, questions

WAYS = {
    "half": ("miniature/rivals/cm3leon_medium", "half of the masks whole segments"),
    "spans": ("miniature/masking/spans", "random spans alone"),
    "whole": ("miniature/masking/whole", "whole segments alone"),
    "documents": ("miniature/masking/documents", "half, and in documents too"),
}
"""The experiments, and what they mask."""
_RATES = {"spans": 0.0, "half": 0.5, "whole": 1.0}
"""How many of the masks are whole segments."""
_DRAWN = ("half", "spans")
_SIZES = {"paper": (9, 32), "here": (20, 4)}
"""Pieces of a caption, and codes along a side of its image."""
_DRAWS, _AT_ONCE = 100_000, 4000


def _measure(bench: Bench) -> Measured:
    every, scores = questions(bench), _masked(bench)
    for name, (experiment, _) in WAYS.items():
        exam = ModelEval(name, bench.trained(experiment), every)
        exam.run()
        scores |= exam.scores
    return Measured(scores, plots=(_plot(scores),), tables=(_nats(scores), _shares(scores)))


def _masked(bench: Bench) -> dict[str, Score]:
    """How often a mask is a whole caption."""
    scores = {}
    for size, (pieces, grid) in _SIZES.items():
        for way in _DRAWN:
            rate = _RATES[way]
            found = np.concatenate(
                [_whole(pieces, grid, rate, first) for first in range(0, _DRAWS, _AT_ONCE)]
            )
            protocol = bench.protocol(
                "one mask in a caption and its picture each",
                [str((pieces, grid, rate))],
                f"captions of {pieces} pieces, pictures of {grid**2} codes",
                "the mask is the whole caption",
                **NO_SAMPLING | {"sampler": "masks.draw_spans"},
            )
            name = f"masked.{size}.{way}"
            scores[name] = Score.share(found.tolist(), 0.0, protocol)
            bench.say(f"{name}: {scores[name].value:.5f}")
    return scores


def _whole(pieces: int, grid: int, rate: float, first: int) -> Bool[np.ndarray, " samples"]:
    """Whether the only mask of each sample is its whole caption; samples count from `first`."""
    vocab = Vocab(VocabConfig(grid=grid))
    row = [vocab.first_text] * pieces + [vocab.break_] + [vocab.first_image] * grid**2
    tokens = np.broadcast_to(np.asarray(row, np.int32), (_AT_ONCE, len(row)))
    positions = np.broadcast_to(np.arange(1, len(row) + 1, dtype=np.int32), tokens.shape)
    spans = draw_spans(
        np,
        tokens,
        positions,
        np.ones(_AT_ONCE, np.int32),
        np.arange(first, first + _AT_ONCE),
        seed=0,
        epoch=0,
        config=CM3Config(whole_segment=rate),
        vocab=vocab,
    )
    return np.asarray((spans.starts == 1) & (spans.stops == 1 + pieces))[:, 0]


def _plot(scores: Scores) -> Plot:
    asked = {
        "caption": "caption",
        "infill": "lower half",
        "scene.docs_0": "plain scene",
        "heldout.docs_1": "held-out emblem with its document",
    }
    series = {
        called: tuple(
            Point(rate, score.value, score.interval)
            for way, rate in _RATES.items()
            for score in [scores[f"{way}.nats.{what}"]]
        )
        for what, called in asked.items()
    }
    title = "Nats per id of the right answer"
    return Plot("nats", title, "share of masks that are whole segments", "nats per id", series)


def _nats(scores: Scores) -> Table:
    asked = {
        "caption": "caption",
        "infill": "lower half",
        "scene.docs_0": "plain scene",
        "heldout.docs_0": "held-out emblem, no document",
        "heldout.docs_1": "with its document",
    }
    rows = tuple(
        (words, *(f"{scores[f'{name}.nats.{what}'].value:.2f}" for what in asked))
        for name, (_, words) in WAYS.items()
    )
    title = "Nats per id of the right answer; of emblems, of their four codes"
    return Table(title, ("what is masked", *asked.values()), rows)


def _shares(scores: Scores) -> Table:
    rows = tuple(
        (
            f"{pieces} pieces, {grid**2} codes",
            *(f"{scores[f'masked.{size}.{way}'].value:.3%}" for way in _DRAWN),
        )
        for size, (pieces, grid) in _SIZES.items()
    )
    columns = ("caption and picture", *(WAYS[way][1] for way in _DRAWN))
    return Table("How often a mask is a whole caption", columns, rows)


# ----------------------------------------------------------------------------------------- the row


def _headline(scores: Scores) -> str:
    caption, lower = (
        " / ".join(
            f"{scores[f'{way}.nats.{what}'].value:.2f}" for way in ("spans", "half", "whole")
        )
        for what in ("caption", "infill")
    )
    bare, too = (scores[f"{way}.nats.heldout.docs_1"].value for way in ("half", "documents"))
    return (
        f"where none / half / all of the masks are whole segments, a caption takes {caption} nats "
        f"per id and a lower half {lower}; masks in documents too change a held-out emblem's from "
        f"{bare:.2f} to {too:.2f}; at the paper's sizes a random span is a whole caption in "
        f"{scores['masked.paper.spans'].value:.3%}"
    )


def _below(scores: Scores, way: str, other: str, what: str) -> bool:
    """Whether one way needs fewer nats than another, the intervals apart."""
    name, others = (f"{which}.nats.{what}" for which in (way, other))
    return scores[name].interval[1] < scores[others].interval[0]


ROW = Row(
    name="masking",
    title="What is masked",
    claim="CM3 masks random spans, one on average, and recalls them behind the sample: so one "
    "model captions, fills in and draws. How often a mask is a whole caption, the paper does not "
    "say, and its code ships 0; spans are as likely in retrieved documents as in what they are "
    "shown for.",
    source="CM3Leon (arXiv 2309.02591), section 2.2; CM3 (arXiv 2201.07520), section 2; metaseq's "
    "branch scaling_racm3",
    how="One model of 0.4 M parameters is trained four times alike "
    "(`experiments/miniature/masking`), with other masks each time, and asked for captions, lower "
    "halves, plain scenes and held-out emblems; and 100,000 masks are drawn at the paper's sizes "
    "and at ours.",
    seconds=2700,
    trains=tuple(experiment for experiment, _ in WAYS.values()),
    measure=_measure,
    headline=_headline,
    targets=(
        Target(
            "at the paper's sizes a random span is a whole caption in less than 0.1 %",
            lambda s: s["masked.paper.spans"].interval[1] < 0.001,
        ),
        Target(
            "captions: fewer nats where half of the masks are whole segments than where none is, "
            "the intervals apart",
            lambda s: _below(s, "half", "spans", "caption"),
        ),
        Target(
            "lower halves: fewer nats where half are whole segments than where all are, the "
            "intervals apart",
            lambda s: _below(s, "half", "whole", "infill"),
        ),
        Target(
            "held-out emblems with their document: masks in documents cost no nats, within the "
            "intervals",
            lambda s: not _below(s, "half", "documents", "heldout.docs_1"),
        ),
    ),
    remark="Trained for 4,000 steps each, fifteen to twenty minutes beside the time above. At our "
    "sizes a random span is a whole caption in 2.6 %; a model that saw no other masks of captions "
    "needs twice the nats for them, and one that saw whole segments alone cannot fill in a part. "
    "Half of each does best at both. Masks in documents spoil no copy, but plain scenes, captions "
    "and lower halves are learnt later.",
)
