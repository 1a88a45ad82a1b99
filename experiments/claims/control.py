"""Control by documents: what is given decides what is drawn, filled in and named."""

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np

from cm3jax.emblems import (
    ProbePrompt,
    Scene,
    caption,
    confirms_batch,
    confirms_emblems,
    draw_scene,
    example,
)
from cm3jax.emblems.examples import bank_documents
from cm3jax.emblems.glyphs import CELL
from cm3jax.emblems.looks import MEMORY_ONLY, Catalogue, catalogue, integer
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.sample import memory_only, with_emblem
from cm3jax.emblems.scene import GRID, Look
from cm3jax.evaluate.protocol import NO_SAMPLING, Score
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.generation.prompts import BLANK, Segments, Shown
from cm3jax.sequence.document import Mark
from cm3jax.shapes import Bool, Float, UInt8
from experiments.claims.claim import Measured, Row, Scores, Target
from experiments.claims.harness import Bench, content

_GIVEN = 5
"""Documents that are given to one prompt in turn."""
_SHOWN = 2
"""Figures of the worst cases, and as many of the best."""
_LOOKS = "looks that no document of any split shows"

Pair = tuple[str, UInt8[np.ndarray, "Y X 3"]]


def _measure(bench: Bench) -> Measured:
    parts = (_infill(bench), _five(bench), _classify(bench))
    return Measured(
        scores={name: score for part in parts for name, score in part.scores.items()},
        figures=tuple(figure for part in parts for figure in part.figures),
    )


# ----------------------------------------------------------------------------------------- infill


def _rows(scene: Scene, rng: random.Random) -> list[int]:
    """The cells of the two rows that the emblem stands in."""
    first = scene.emblems[0].cells[0] // GRID
    return list(range(first * GRID, (first + 2) * GRID))


def _cell(scene: Scene, rng: random.Random) -> list[int]:
    """One cell of the emblem."""
    return [scene.emblems[0].cells[integer(rng, 4)]]


_HOLES: dict[str, tuple[Callable[[Scene, random.Random], list[int]], float]] = {
    "rows": (_rows, 1 / QUARTERS**4),
    "cell": (_cell, 1 / QUARTERS),
}
"""What is masked, and the chance of guessing what of the emblem is in there."""


def _infill(bench: Bench) -> Measured:
    """A masked emblem, with a document that shows it, with none, and with one of another."""
    every = bench.asked("heldout")
    scores: dict[str, Score] = {}
    figures: list[Figure] = []
    for hole, (masked, chance) in _HOLES.items():
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
                filled[how] = np.stack([group[0].image for group in found])
                verdicts[how].append(confirms_emblems(filled[how], [p.scene for p in asked]))
            if seed == 0:
                hidden = np.where(masks[..., None], np.uint8(BLANK), images)
                chosen = Chosen.of(verdicts["with"][0], _SHOWN)
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
        for how, found in verdicts.items():
            protocol = bench.protocol(
                "emblems heldout",
                content(every),
                "memory-only emblems, at places and in scenes that no document shows",
                f"the emblem in the filled picture; masked: {_MASKED[hole]}",
                retrieved=int(how != "without"),
                documents="none" if how == "without" else f"given by hand, {shown[how]}",
            )
            name = f"infill.{hole}.{how}"
            scores[name] = bench.share(name, np.asarray(found), chance, protocol)
    return Measured(scores, figures=tuple(figures))


_MASKED = {"rows": "the two rows of cells that it stands in", "cell": "one of its four cells"}
_TITLES = {
    "rows": "The rows of an emblem, filled in after a given document",
    "cell": "One cell of an emblem, filled in after a given document",
}


def _bank_pair(prompt: ProbePrompt) -> Pair:
    """The first document of the bank that shows the prompt's emblem; such are pairs."""
    number = catalogue(0).names.index(prompt.scene.emblems[0].name)
    text, picture = example("bank", bank_documents(number)[0], size=len(prompt.image)).segments
    return text, picture


def _masks(
    cells: Sequence[Sequence[int]], images: UInt8[np.ndarray, "B Y X 3"]
) -> Bool[np.ndarray, "B Y X"]:
    """The pixels of each picture's cells."""
    masks = np.zeros((len(images), GRID * GRID), bool)
    for mask, own in zip(masks, cells, strict=True):
        mask[list(own)] = True
    side = images.shape[1] // GRID
    return masks.reshape(-1, GRID, GRID).repeat(side, 1).repeat(side, 2)


# --------------------------------------------------------------------- one prompt, five documents


def _five(bench: Bench) -> Measured:
    """Documents that show one name with five looks, given in turn to one prompt."""
    every = bench.asked("heldout")
    each, all_five = [], []
    figures: list[Figure] = []
    for seed, asked in enumerate(every):
        pairs, expected = [], []
        for prompt in asked:
            for turn in range(_GIVEN):
                look = _look(prompt, turn)
                pairs.append(_pair(prompt.scene.emblems[0].name, look, f"{prompt.key} {turn}"))
                expected.append(_with_look(prompt.scene, look))
        texts = [prompt.text for prompt in asked for _ in range(_GIVEN)]
        drawn = bench.draw(texts, [[one] for one in bench.documents(pairs)], seed)
        right = np.reshape(confirms_batch(drawn, expected), (-1, _GIVEN))
        each.append(right.ravel())
        all_five.append(right.all(1))
        if seed == 0:
            chosen = Chosen.of(right.mean(1).tolist(), _SHOWN)
            for place in chosen.places:
                cells = [
                    cell
                    for one, turn in enumerate(range(place * _GIVEN, (place + 1) * _GIVEN))
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
        f"memory-only names with {_LOOKS}",
        "emblems.confirms: shows the exact scene with the given document's look",
        retrieved=1,
        documents=f"given by hand: {_GIVEN} in turn, each with another look under the name",
    )
    chance = 1 / QUARTERS**4
    names = ("five_documents.each_picture", "five_documents.all_five")
    scores = {
        name: bench.share(name, np.asarray(found), by_chance, protocol)
        for name, found, by_chance in zip(
            names, (each, all_five), (chance, chance**_GIVEN), strict=True
        )
    }
    return Measured(scores, figures=tuple(figures))


def _look(prompt: ProbePrompt, turn: int) -> Look:
    """A look of another dataset's emblems: no document shows it."""
    looks, index = catalogue(1).looks, int(prompt.key.rpartition("-")[2])
    return looks[(index * _GIVEN + turn) % len(looks)]


def _with_look(scene: Scene, look: Look) -> Scene:
    return dataclasses.replace(scene, emblems=(dataclasses.replace(scene.emblems[0], look=look),))


def _scene(name: str, look: Look, key: str) -> Scene:
    """A scene with an emblem of this name and look, a function of `key`."""
    return with_emblem(random.Random(f"claims {key}"), 0, Catalogue((name,), (look,)))


def _pair(name: str, look: Look, key: str) -> Pair:
    scene = _scene(name, look, key)
    return caption(scene), draw_scene(scene, CELL * GRID)


# ------------------------------------------------------------------ classification by made-up names


@dataclasses.dataclass(frozen=True)
class _Case:
    """A picture of one of two emblems, whose names a document each has told."""

    scene: Scene
    names: tuple[str, str]
    """The right one first."""
    pairs: tuple[Pair, Pair]
    """The pairs of the names, in their order."""
    first: int
    """Which of the two documents comes first."""


def _classify(bench: Bench) -> Measured:
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
                chosen = Chosen.of(verdicts[name][0].tolist(), _SHOWN)
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
            f"memory-only names with {_LOOKS}",
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
        _pair(own, own_look, f"classify {number} own"),
        _pair(other, other_look, f"classify {number} other"),
    )
    scene = _scene(own, own_look, f"classify {number}")
    return _Case(scene, (own, other), pairs, integer(rng, 2))


def _likelihoods(bench: Bench, cases: Sequence[_Case], shown) -> Float[np.ndarray, "B 2"]:
    """Nats of the picture's caption with either name, the right one first."""
    generator = bench.generator
    rows: list[Segments] = [
        ((Mark.MASK,), Shown(draw_scene(case.scene, bench.size))) for case in cases
    ]
    asks = generator.ask.fillings(rows, shown, None, generator.decode)
    nats = []
    for which in (0, 1):
        texts = [caption(case.scene).replace(case.names[0], case.names[which]) for case in cases]
        first, end = generator.vocab.first_text, generator.vocab.eoss
        answers = [
            np.asarray([*(first + piece for piece in generator.text.encode(text)), end], np.int32)
            for text in texts
        ]
        nats.append(generator.logprobs(asks, answers))
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


# ----------------------------------------------------------------------------------------- the row


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
        f"one masked cell: {cell:.1%}); five given documents, five pictures: {five:.1%} right; "
        f"one-shot names: {shot:.1%} right (chance 50 %)"
    )


def _within(name: str, reach: float) -> Callable[[Scores], bool]:
    return lambda scores: scores[name].value <= scores[name].chance + reach


ROW = Row(
    name="control",
    title="Control by documents",
    claim="A document that is put in front steers the picture: a masked part is filled in as the "
    "document shows it (a red jacket), one prompt gives other pictures with other documents. "
    "RA-CM3 names the class of a picture from one picture per class with made-up labels, by "
    "likelihood: 78 % right after one of each, 53 % without.",
    source="RA-CM3 (arXiv 2211.12561), through a reading note; CM3Leon (arXiv 2309.02591), section "
    "2.1; an article that explains it to practitioners",
    how="A memory-only emblem is masked and filled in, with a document of it in front, with none, "
    "and with one of another emblem. One prompt is drawn with five documents that show its name "
    "with five looks that no split knows. Then two such looks get a name each, by one document for "
    "each, a third picture shows one of them, and the likelier of two captions names it.",
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
            lambda scores: all(_within(f"infill.{h}.without", 0.05)(scores) for h in _HOLES),
        ),
        Target(
            "both with a document of another emblem: at most chance and 5 %",
            lambda scores: all(_within(f"infill.{h}.another", 0.05)(scores) for h in _HOLES),
        ),
        Target(
            "five given documents, five correct pictures: for at least 95 % of prompts",
            lambda scores: scores["five_documents.all_five"].value >= 0.95,
        ),
        Target(
            "names from one document each: above chance, the intervals apart",
            lambda scores: scores["classify.one_shot"].interval[0] > 0.5,
        ),
    ),
    remark="Of infilling, training masked whole rows of cells in most pictures (cm3.picture_rows), "
    "so that a run which begins inside a row is rarely shown: one masked cell is filled right less "
    "often. Names are taken from the first document, whatever it shows (see right_first and "
    "wrong_first): in training documents stood in the order of the clauses that had found them, so "
    "that a caption's only emblem was always the first document's, and pictures need not be "
    "compared.",
)
