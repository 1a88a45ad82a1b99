"""One prompt, drawn with documents that show its name with looks that no split knows."""

import dataclasses
import random

import numpy as np

from cm3jax.emblems import (
    ProbePrompt,
    Scene,
    caption,
    confirms_batch,
    draw_scene,
)
from cm3jax.emblems.glyphs import CELL
from cm3jax.emblems.looks import Catalogue, catalogue
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.sample import with_emblem
from cm3jax.emblems.scene import GRID, Look
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.shapes import UInt8
from experiments.claims.claim import Measured
from experiments.claims.harness import Bench, content

GIVEN = 5
"""Documents that are given to one prompt in turn."""
SHOWN = 2
"""Figures of the worst cases, and as many of the best."""
LOOKS = "looks that no document of any split shows"

Pair = tuple[str, UInt8[np.ndarray, "Y X 3"]]


def five_documents(bench: Bench) -> Measured:
    """Documents that show one name with five looks, given in turn to one prompt."""
    every = bench.asked("heldout")
    each, all_five = [], []
    figures: list[Figure] = []
    for seed, asked in enumerate(every):
        pairs, expected = [], []
        for prompt in asked:
            for turn in range(GIVEN):
                look = _look(prompt, turn)
                pairs.append(pair_with(prompt.scene.names[0], look, f"{prompt.key} {turn}"))
                expected.append(_with_look(prompt.scene, look))
        texts = [prompt.text for prompt in asked for _ in range(GIVEN)]
        drawn = bench.draw(texts, [[one] for one in bench.documents(pairs)], seed)
        right = np.reshape(confirms_batch(drawn, expected), (-1, GIVEN))
        each.append(right.ravel())
        all_five.append(right.all(1))
        if seed == 0:
            chosen = Chosen.of(right.mean(1).tolist(), SHOWN)
            for place in chosen.places:
                cells = [
                    cell
                    for one, turn in enumerate(range(place * GIVEN, (place + 1) * GIVEN))
                    for cell in (
                        Cell.of(f"document {one + 1}", pairs[turn][1]),
                        Cell.of("drawn with it", drawn[turn], correct=bool(right[place, one])),
                    )
                ]
                title = "One prompt, five given documents"
                figures.append(Figure(title, asked[place].text, tuple(cells), chosen.note))
    protocol = bench.protocol(
        "emblems heldout",
        content(every),
        f"memory-only names with {LOOKS}",
        "emblems.confirms: shows the exact scene with the given document's look",
        retrieved=1,
        documents=f"given by hand: {GIVEN} in turn, each with another look under the name",
    )
    chance = 1 / QUARTERS**4
    names = ("five_documents.each_picture", "five_documents.all_five")
    scores = {
        name: bench.share(name, np.asarray(found), by_chance, protocol)
        for name, found, by_chance in zip(
            names, (each, all_five), (chance, chance**GIVEN), strict=True
        )
    }
    return Measured(scores, figures=tuple(figures))


def _look(prompt: ProbePrompt, turn: int) -> Look:
    """A look of another dataset's emblems: no document shows it."""
    looks, index = catalogue(1).looks, int(prompt.key.rpartition("-")[2])
    return looks[(index * GIVEN + turn) % len(looks)]


def _with_look(scene: Scene, look: Look) -> Scene:
    return dataclasses.replace(scene, emblems=(dataclasses.replace(scene.emblems[0], look=look),))


def scene_with(name: str, look: Look, key: str) -> Scene:
    """A scene with an emblem of this name and look, a function of `key`."""
    return with_emblem(random.Random(f"claims {key}"), 0, Catalogue((name,), (look,)))


def pair_with(name: str, look: Look, key: str) -> Pair:
    """Caption and image of `scene_with`."""
    scene = scene_with(name, look, key)
    return caption(scene), draw_scene(scene, CELL * GRID)
