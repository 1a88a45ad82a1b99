"""A masked emblem, filled in after a document."""

import random
from collections.abc import Callable, Sequence

import numpy as np

from cm3jax.emblems import (
    ProbePrompt,
    Scene,
    confirms_emblems,
    example,
)
from cm3jax.emblems.examples import bank_documents
from cm3jax.emblems.looks import catalogue, integer
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.scene import GRID
from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.generation.answers import image_of
from cm3jax.generation.prompts import BLANK
from cm3jax.shapes import Bool, UInt8
from experiments.claims.claim import Measured
from experiments.claims.control_looks import SHOWN, Pair
from experiments.claims.harness import Bench, content


def _rows(scene: Scene, rng: random.Random) -> list[int]:
    """The cells of the two rows that the emblem is in."""
    first = scene.emblems[0].cells[0] // GRID
    return list(range(first * GRID, (first + 2) * GRID))


def _cell(scene: Scene, rng: random.Random) -> list[int]:
    """One cell of the emblem."""
    return [scene.emblems[0].cells[integer(rng, 4)]]


HOLES: dict[str, tuple[Callable[[Scene, random.Random], list[int]], float]] = {
    "rows": (_rows, 1 / QUARTERS**4),
    "cell": (_cell, 1 / QUARTERS),
}
"""What is masked, and the chance of guessing what of the emblem is in there."""


def infill(bench: Bench) -> Measured:
    """A masked emblem, with a document that shows it, with none, and with one of another."""
    every = bench.asked("heldout")
    scores: dict[str, Score] = {}
    figures: list[Figure] = []
    for hole, (masked, chance) in HOLES.items():
        verdicts: dict[str, list[list[bool]]] = {"with": [], "without": [], "another": []}
        for seed, asked in enumerate(every):
            images = np.stack([prompt.image for prompt in asked])
            masks = _masks([masked(p.scene, random.Random(p.key)) for p in asked], images)
            pairs = [_bank_pair(prompt) for prompt in asked]
            right = bench.documents(pairs)
            given = {
                "with": [[document] for document in right],
                "without": None,
                "another": [[document] for document in [*right[1:], right[0]]],
            }
            texts, filled = [prompt.text for prompt in asked], {}
            for how, documents in given.items():
                found = bench.generator.infill(texts, images, masks, documents, seed=seed)
                filled[how] = np.stack([image_of(group[0]) for group in found])
                verdicts[how].append(confirms_emblems(filled[how], [p.scene for p in asked]))
            if seed == 0:
                hidden = np.where(masks[..., None], np.uint8(BLANK), images)
                chosen = Chosen.of(verdicts["with"][0], SHOWN)
                for place in chosen.places:
                    cells = (
                        Cell.of("given document", pairs[place][1], pairs[place][0]),
                        Cell.of("given picture", hidden[place]),
                        *(
                            Cell.of(label, filled[how][place], correct=verdicts[how][0][place])
                            for how, label in (("with", "filled in"), ("without", "without it"))
                        ),
                        Cell.of("as it should be", images[place]),
                    )
                    figures.append(Figure(_TITLES[hole], texts[place], cells, chosen.note))
        shown = {"with": "one that shows it", "without": "none", "another": "one of another emblem"}
        for how, right_by_seed in verdicts.items():
            protocol = bench.protocol(
                "emblems heldout",
                content(every),
                "memory-only emblems, at places and in scenes that no document shows",
                f"the emblem in the filled picture; masked: {_MASKED[hole]}",
                retrieved=int(how != "without"),
                documents="none" if how == "without" else f"given by hand, {shown[how]}",
            )
            name = f"infill.{hole}.{how}"
            scores[name] = bench.share(name, np.asarray(right_by_seed), chance, protocol)
    return Measured(scores, figures=tuple(figures))


_MASKED = {"rows": "the two rows of cells that it stands in", "cell": "one of its four cells"}
_TITLES = {
    "rows": "The rows of an emblem, filled in after a given document",
    "cell": "One cell of an emblem, filled in after a given document",
}


def _bank_pair(prompt: ProbePrompt) -> Pair:
    """The first document of the bank that shows the prompt's emblem; such are pairs."""
    number = catalogue(0).names.index(prompt.scene.names[0])
    match example("bank", bank_documents(number)[0], size=len(prompt.image)).segments:
        case (str() as text, np.ndarray() as picture):
            return text, picture
    raise ValueError(f"the first document of {prompt.key}'s emblem is no pair")


def _masks(
    cells: Sequence[Sequence[int]], images: UInt8[np.ndarray, "B Y X 3"]
) -> Bool[np.ndarray, "B Y X"]:
    """The pixels of each image's cells."""
    masks = np.zeros((len(images), GRID * GRID), bool)
    for mask, own in zip(masks, cells, strict=True):
        mask[list(own)] = True
    side = images.shape[1] // GRID
    return masks.reshape(-1, GRID, GRID).repeat(side, 1).repeat(side, 2)
