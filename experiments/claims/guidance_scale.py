"""How much classifier-free guidance helps."""

import dataclasses

import numpy as np

from cm3jax.emblems import confirms_batch
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.probe_prompts import ProbeKind
from cm3jax.evaluate.protocol import Score
from cm3jax.report.plots import Plot, Point
from experiments.claims.claim import Measured, Row, Scores, Target
from experiments.claims.distance import Distance
from experiments.claims.harness import Bench, content

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
TEMPERATURE = 1.0
_KIND: ProbeKind = "heldout_pair"
_DOCUMENTS = 2


def _measure(bench: Bench) -> Measured:
    bank, every, distance = bench.bank(), bench.asked(_KIND), Distance(bench, _KIND)
    scores: dict[str, Score] = {}
    for scale in SCALES:
        decode = dataclasses.replace(
            bench.generator.decode, temperature=TEMPERATURE, guidance_scale=scale
        )
        right, drawn = [], []
        for seed, asked in enumerate(every):
            texts = [prompt.text for prompt in asked]
            shown = bench.generator.retrieve(texts=texts, k=_DOCUMENTS)
            drawn.append(bench.draw(texts, shown, seed, decode))
            right.append(confirms_batch(drawn[-1], [prompt.scene for prompt in asked]))
        protocol = bench.protocol(
            f"emblems {_KIND}",
            content(every),
            "two memory-only emblems each, in scenes that no document shows",
            "emblems.confirms: shows the exact scene",
            decode=decode,
            bank=bank,
            retrieved=_DOCUMENTS,
            documents="live retrieval by the prompt's text, best 2",
        )
        accuracy, fid = _names(scale)
        scores[accuracy] = bench.share(accuracy, np.asarray(right), 1 / QUARTERS**8, protocol)
        scores[fid] = distance.score(fid, np.concatenate(drawn), protocol)
    return Measured(scores, plots=(_plot(scores, 0), _plot(scores, 1)))


def _names(scale: float) -> tuple[str, str]:
    written = f"{scale:g}".replace(".", "_")  # a dot would part the names of scores
    return f"accuracy.cfg_{written}", f"fid.cfg_{written}"


def _plot(scores: Scores, which: int) -> Plot:
    points = tuple(
        Point(scale, score.value, score.interval)
        for scale in SCALES
        for score in [scores[_names(scale)[which]]]
    )
    name, title, y = (
        ("accuracy", "Pairs that are right", "share"),
        ("fid", "FID by our CLIP's picture features", "FID (lower is better)"),
    )[which]
    return Plot(name, title, "guidance scale", y, {"two emblems, 2 documents": points})


def _best(scores: Scores) -> float:
    return min(SCALES, key=lambda scale: scores[_names(scale)[1]].value)


def _headline(scores: Scores) -> str:
    best = _best(scores)
    (right, fid), (plain, plain_fid) = (
        [scores[name].value for name in _names(scale)] for scale in (best, 1.0)
    )
    return (
        f"FID is lowest at scale {best:g}: {fid:.1f}, {right:.1%} of pairs right; without guidance "
        f"{plain_fid:.1f} and {plain:.1%}"
    )


ROW = Row(
    name="guidance",
    title="Guidance scale",
    claim="Classifier-free guidance without training for it: the masked text is the unconditional "
    "stream. FID over the scale (1 to 7) has its lowest point inside, at the same place for all "
    "model sizes.",
    source="CM3Leon (arXiv 2309.02591), section 3.1 and figure 4, left (FID 8 to 20 on 8,000 "
    "held-out captions)",
    how=f"Images of two memory-only emblems at temperature {TEMPERATURE:g} with two retrieved "
    "documents, which the unconditional stream keeps while the text is masked.",
    seconds=480,
    measure=_measure,
    headline=_headline,
    targets=(
        Target("FID is lowest at a scale between 1 and 7", lambda s: 1 < _best(s) < SCALES[-1]),
        Target(
            "FID there is below that without guidance, the intervals apart",
            lambda s: s[_names(_best(s))[1]].interval[1] < s[_names(1.0)[1]].interval[0],
        ),
        Target(
            "more pairs are right there than without guidance",
            lambda s: s[_names(_best(s))[0]].value > s[_names(1.0)[0]].value,
        ),
    ),
    remark="The lowest point lies inside, but near no guidance, and the curve's left end is flat: "
    "what a caption and its documents say decides every code, so that little is left to guide. "
    "Larger scales spoil pairs, likely because the unconditional stream keeps the documents: to "
    "push away from it is to push away from the emblems that they show.",
)
