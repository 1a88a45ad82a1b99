"""Which of two made-up names fits an image, after a document of each: by likelihood."""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from cm3jax.emblems import (
    Scene,
    caption,
    draw_scene,
)
from cm3jax.emblems.looks import MEMORY_ONLY, catalogue, integer
from cm3jax.emblems.sample import memory_only
from cm3jax.evaluate.protocol import NO_SAMPLING
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.generation.prompts import caption_prompt
from cm3jax.shapes import Bool, Float
from experiments.claims.claim import Measured
from experiments.claims.control_looks import LOOKS, SHOWN, Pair, pair_with, scene_with
from experiments.claims.harness import Bench


@dataclasses.dataclass(frozen=True)
class _Case:
    """An image of one of two emblems, whose names a document each has told."""

    scene: Scene
    names: tuple[str, str]
    """The right one first."""
    pairs: tuple[Pair, Pair]
    """The pairs of the names, in their order."""
    first: int
    """Which of the two documents comes first."""


def classify(bench: Bench) -> Measured:
    """Which of two names is the likelier caption, after no document and one of each name."""
    orders = {"no_documents": None, "one_shot": None, "right_first": 0, "wrong_first": 1}
    verdicts: dict[str, list[Bool[np.ndarray, " B"]]] = {name: [] for name in orders}
    figures: list[Figure] = []
    asked: list[str] = []
    for seed in range(bench.seeds):
        numbers = range(seed * bench.prompts, (seed + 1) * bench.prompts)
        cases = [_case(number) for number in numbers]
        asked += [case.scene.to_json() + str(case.names) for case in cases]
        for name, first in orders.items():
            shown = None
            if name != "no_documents":
                order = [case.first if first is None else first for case in cases]
                pairs = [
                    case.pairs[i ^ o] for case, o in zip(cases, order, strict=True) for i in (0, 1)
                ]
                ids = bench.documents(pairs)
                shown = [ids[i : i + 2] for i in range(0, len(ids), 2)]
            nats = _likelihoods(bench, cases, shown)
            verdicts[name].append(nats[:, 0] > nats[:, 1])
            if seed == 0 and name == "one_shot":
                chosen = Chosen.of(verdicts[name][0].tolist(), SHOWN)
                figures = [
                    dataclasses.replace(_classified(cases[i], nats[i]), note=chosen.note)
                    for i in chosen.places
                ]
    says = {
        "no_documents": "none",
        "one_shot": "one of either name, given by hand in random order",
        "right_first": "one of either name, given by hand, the right one first",
        "wrong_first": "one of either name, given by hand, the wrong one first",
    }
    scores = {}
    for name, found in verdicts.items():
        protocol = bench.protocol(
            "pictures of one of two emblems",
            asked,
            f"memory-only names with {LOOKS}",
            "the likelier of two captions that differ in the name",
            retrieved=0 if name == "no_documents" else 2,
            documents=says[name],
            **NO_SAMPLING,
        )
        scores[f"classify.{name}"] = bench.share(
            f"classify.{name}", np.asarray(found), 0.5, protocol
        )
    return Measured(scores, figures=tuple(figures))


def _case(number: int) -> _Case:
    rng = random.Random(f"claims classify {number}")
    names, looks = catalogue(0).names[:MEMORY_ONLY], catalogue(1).looks
    own, other = (
        names[memory_only(number + step)] for step in (0, 1 + integer(rng, MEMORY_ONLY - 1))
    )
    own_look, other_look = (looks[(2 * number + i) % len(looks)] for i in (0, 1))
    pairs = (
        pair_with(own, own_look, f"classify {number} own"),
        pair_with(other, other_look, f"classify {number} other"),
    )
    scene = scene_with(own, own_look, f"classify {number}")
    return _Case(scene, (own, other), pairs, integer(rng, 2))


def _likelihoods(bench: Bench, cases: Sequence[_Case], shown) -> Float[np.ndarray, "B 2"]:
    """Nats of the image's caption with either name, the right one first."""
    generator = bench.generator
    prompts = [caption_prompt(draw_scene(case.scene, bench.size)) for case in cases]
    requests = generator.requests(prompts, shown)
    nats = []
    for which in (0, 1):
        texts = [caption(case.scene).replace(case.names[0], case.names[which]) for case in cases]
        first, end = generator.vocab.first_text, generator.vocab.eoss
        answers = [
            np.asarray([*(first + piece for piece in generator.text.encode(text)), end], np.int32)
            for text in texts
        ]
        nats.append(generator.logprobs(requests, answers))
    return np.stack(nats, 1)


def _classified(case: _Case, nats: Float[np.ndarray, " 2"]) -> Figure:
    order = (case.first, 1 - case.first)
    cells = [Cell.of("given document", case.pairs[i][1], case.pairs[i][0]) for i in order]
    cells.append(Cell.of("picture", draw_scene(case.scene)))
    cells += [
        Cell(
            f"{case.names[i]}: {nats[i]:.1f} nats",
            correct=i == 0 if nats[i] == nats.max() else None,
        )
        for i in order
    ]
    return Figure("A name for a picture, from two documents", "Which emblem is it?", tuple(cells))
