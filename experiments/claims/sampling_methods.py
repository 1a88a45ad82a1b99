"""Ways to sample, against the number of samples of which CLIP chooses."""

import dataclasses
from typing import Any

import numpy as np

from cm3jax.emblems import confirms_batch
from cm3jax.emblems.probe_prompts import ProbeKind
from cm3jax.evaluate.chance import of_another_answer
from cm3jax.evaluate.protocol import Score
from cm3jax.generation.answers import image_of
from cm3jax.generation.ranking import clip_scores
from cm3jax.report.plots import Plot, Point
from experiments.claims.claim import Measured, Row, Scores, Target
from experiments.claims.distance import Distance
from experiments.claims.harness import Bench, content

COUNTS = (1, 2, 4, 8)
"""Samples of a prompt, of which the best by CLIP counts."""
TEMPERATURE = 2.0
"""At 1 every scene is right at once, and nothing is left to choose."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("temperature 2", {}),
    "top_p": ("top-p 0.8", {"top_p": 0.8}),
    "cfg": ("guidance 3", {"guidance_scale": 3.0}),
    "cdk": ("CD-K, k 8, alpha 0.5", {"contrast": "all"}),
    "half": ("half top-p, half CD-K", {"contrast": "half", "top_p": 0.8}),
}
_KIND: ProbeKind = "scene"
_PART = 2
"""Every n-th prompt is asked: each one is drawn eight times in five ways."""


def _measure(bench: Bench) -> Measured:
    distance = Distance(bench, _KIND)
    every = [asked[::_PART] for asked in bench.asked(_KIND)]
    by_chance = of_another_answer([p.scene.seen() for asked in every for p in asked])
    scores: dict[str, Score] = {}
    for method, (words, change) in METHODS.items():
        config = {"temperature": TEMPERATURE} | change
        decode = dataclasses.replace(bench.generator.decode, **config)
        right: dict[int, list[list[bool]]] = {count: [] for count in COUNTS}
        likeliest: list[list[bool]] = []
        chosen: dict[int, list[np.ndarray]] = {count: [] for count in COUNTS}
        for seed, asked in enumerate(every):
            texts = [prompt.text for prompt in asked]
            found = bench.generator.text_to_image(
                texts, samples=COUNTS[-1], seed=seed, decode=decode
            )
            drawn = np.asarray([[image_of(sample) for sample in group] for group in found])
            pairs = zip(texts, drawn, strict=True)
            rank = np.stack([clip_scores(bench.generator.encoder, *pair) for pair in pairs])
            nats = np.asarray([[sample.logprob for sample in group] for group in found])
            scenes = [prompt.scene for prompt in asked]
            best = drawn[np.arange(len(asked)), nats.argmax(1)]
            likeliest.append(confirms_batch(best, scenes))
            for count in COUNTS:
                best = drawn[np.arange(len(asked)), rank[:, :count].argmax(1)]
                chosen[count].append(best)
                right[count].append(confirms_batch(best, scenes))
        for count in COUNTS:
            protocol = bench.protocol(
                f"emblems {_KIND}",
                content(every),
                "scenes that no other split shows",
                "emblems.confirms: shows the exact scene",
                decode=decode,
                sampler=words,
                samples=count,
                rerank="CLIP" if count > 1 else "none",
            )
            accuracy, fid = _names(method, count)
            scores[accuracy] = bench.share(accuracy, np.asarray(right[count]), by_chance, protocol)
            scores[fid] = distance.score(fid, np.concatenate(chosen[count]), protocol)
        by_itself = dataclasses.replace(protocol, rerank="the likeliest by the model itself")
        name = _likeliest(method)
        scores[name] = bench.share(name, np.asarray(likeliest), by_chance, by_itself)
    return Measured(scores, plots=(_plot(scores, 0), _plot(scores, 1)))


def _names(method: str, count: int) -> tuple[str, str]:
    return f"accuracy.{method}.best_of_{count}", f"fid.{method}.best_of_{count}"


def _likeliest(method: str) -> str:
    return f"accuracy.{method}.likeliest_of_{COUNTS[-1]}"


def _plot(scores: Scores, which: int) -> Plot:
    series = {
        words: tuple(
            Point(count, score.value, score.interval)
            for count in COUNTS
            for score in [scores[_names(method, count)[which]]]
        )
        for method, (words, _) in METHODS.items()
    }
    name, title, y = (
        ("accuracy", "Scenes that are right, best of several by CLIP", "share"),
        ("fid", "FID by our CLIP's picture features", "FID (lower is better)"),
    )[which]
    return Plot(name, title, "samples of each prompt", y, series, log_x=True)


def _headline(scores: Scores) -> str:
    parts = []
    for method, (words, _) in METHODS.items():
        names = (_names(method, 1)[0], _names(method, COUNTS[-1])[0])
        one, best = (f"{scores[name].value:.1%}" for name in names)
        parts.append(f"{words} {one} → {best}")
    return f"right in one sample → the best of {COUNTS[-1]} by CLIP: {'; '.join(parts)}"


def _fid(scores: Scores, method: str, count: int) -> Score:
    return scores[_names(method, count)[1]]


ROW = Row(
    name="sampling",
    title="Ways to sample, and how many samples",
    claim="The more samples CLIP chooses from, the better the FID (16 down to about 8 from 1 to 32 "
    "samples). Top-p and CD-K do about as well as each other and each saturates; half of either "
    "goes on to improve.",
    source="CM3Leon (arXiv 2309.02591), section 3.1 and figure 4, right",
    how="Plain scenes without documents at temperature 2 (at 1 all are right at once), of every "
    "second prompt eight samples in each of five ways. The paper names no values for top-p and "
    "CD-K. Beside CLIP's choice stands that of the model's own likelihood.",
    seconds=900,
    measure=_measure,
    headline=_headline,
    targets=(
        Target(
            f"the best of {COUNTS[-1]} has a lower FID than one sample, in every way",
            lambda s: all(_fid(s, m, COUNTS[-1]).value < _fid(s, m, 1).value for m in METHODS),
        ),
        Target(
            f"at plain temperature the best of {COUNTS[-1]} is right more often than one sample, "
            "the intervals apart",
            lambda s: (
                s[_names("temperature", 1)[0]].interval[1]
                < s[_names("temperature", COUNTS[-1])[0]].interval[0]
            ),
        ),
        Target(
            "top-p and CD-K are alike: their intervals overlap at every count",
            lambda s: all(
                max(_fid(s, m, n).interval[0] for m in ("top_p", "cdk"))
                <= min(_fid(s, m, n).interval[1] for m in ("top_p", "cdk"))
                for n in COUNTS
            ),
        ),
        Target(
            f"the mixture has the lowest FID of the three at {COUNTS[-1]} samples",
            lambda s: (
                _fid(s, "half", COUNTS[-1]).value
                < min(_fid(s, m, COUNTS[-1]).value for m in ("top_p", "cdk"))
            ),
        ),
    ),
    remark="A scene has one right code in each cell. CD-K keeps at least k codes there, of which "
    "all but one are wrong, and prefers those that the unconditional stream finds unlikely; k and "
    "alpha are ours, since the paper names none. CLIP's choice helps among few samples and is "
    "misled among many: the shipped encoder was trained to find documents, not to judge images. "
    "The model's own likelihood chooses better. FID over 300 images tells large differences "
    "alone.",
)
