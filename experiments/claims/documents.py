"""Retrieved documents decide what can be drawn, and how well."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cm3jax.emblems import confirms_batch, read_batch
from cm3jax.emblems.looks import MEMORY_ONLY, Catalogue, catalogue
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.probe_prompts import ProbeKind
from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.generation.requests import ShownDocument
from cm3jax.report.plots import Plot, Point
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.retriever import Retrieved, Retriever
from cm3jax.sequence.document import Image, Text, parse, render
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import UInt8
from experiments.claims.claim import Measured, Row, Scores, Table, Target, above_chance, percent
from experiments.claims.distance import Distance
from experiments.claims.harness import EMBLEMS, Bench, content

COUNTS = (0, 1, 2)
"""Documents at test."""
PAPER_FID = (10.82, 5.78, 4.88)
"""CM3Leon-7B's on MS-COCO with each number of documents (table 1)."""
KINDS: dict[str, tuple[ProbeKind, str]] = {
    "one": ("heldout", "one emblem"),
    "two": ("heldout_pair", "two emblems"),
}
_SPLIT = "memory-only emblems, in scenes that no document shows"
_READER = "emblems.confirms: shows the exact scene"
_CHANCE = {"one": 1 / QUARTERS**4, "two": 1 / QUARTERS**8}

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "clauses": ("a document for each clause in turn, as shipped", {}),
    "clauses_off": (
        "clause by clause, the best two whatever they show",
        {"clause_margin": 0.0, "diversity_cut": 1.0},
    ),
    "whole": (
        "the whole caption, the second unlike the first (at most 0.6)",
        {"clauses": False, "diversity_cut": 0.6},
    ),
    "whole_off": (
        "the whole caption, the best two whatever they show",
        {"clauses": False, "diversity_cut": 1.0},
    ),
}
"""How the two documents of a two-emblem prompt are chosen."""

HALVES: dict[str, tuple[type, ...]] = {
    "pair": (Text, Image),
    "picture": (Image,),
    "text": (Text,),
}
"""What of a document is shown."""


def _measure(bench: Bench) -> Measured:
    bank = bench.bank()
    parts = [_counts(bench, bank), _rules(bench, bank), _halves(bench, bank)]
    return Measured(
        scores={name: score for part in parts for name, score in part.scores.items()},
        plots=tuple(plot for part in parts for plot in part.plots),
        tables=tuple(table for part in parts for table in part.tables),
        figures=tuple(figure for part in parts for figure in part.figures),
    )


# ------------------------------------------------------------------------------ 0, 1, 2 documents


def _counts(bench: Bench, bank: Bank) -> Measured:
    scores: dict[str, Score] = {}
    figures: list[Figure] = []
    for which, (kind, words) in KINDS.items():
        every, distance = bench.asked(kind), Distance(bench, kind)
        drawn: dict[int, list[np.ndarray]] = {count: [] for count in COUNTS}
        right: dict[int, list[list[bool]]] = {count: [] for count in COUNTS}
        for seed, asked in enumerate(every):
            texts = [prompt.text for prompt in asked]
            nothing: list[list[Retrieved]] = [[] for _ in texts]
            shown = {k: bench.generator.retrieve(texts, k=k) if k else nothing for k in COUNTS}
            for count, documents in shown.items():
                images = bench.draw(texts, documents, seed)
                drawn[count].append(images)
                right[count].append(confirms_batch(images, [prompt.scene for prompt in asked]))
            if seed == 0:
                chosen = Chosen.of(right[2][0], 2)
                for place in chosen.places:
                    figures.append(
                        Figure(
                            f"0, 1 and 2 documents: {words}",
                            texts[place],
                            (
                                *(bench.cell(found) for found in shown[2][place]),
                                *(
                                    Cell.of(
                                        f"drawn with {k}",
                                        drawn[k][0][place],
                                        correct=right[k][0][place],
                                    )
                                    for k in COUNTS
                                ),
                                Cell.of("as it should be", asked[place].image),
                            ),
                            chosen.note,
                        )
                    )
        for count in COUNTS:
            protocol = bench.protocol(
                f"emblems {kind}",
                content(every),
                _SPLIT,
                _READER,
                bank=bank,
                retrieved=count,
                documents=f"live retrieval by the prompt's text, best {count}" if count else "none",
            )
            name = f"{which}.docs_{count}"
            verdicts = np.asarray(right[count])
            scores[name] = bench.share(name, verdicts, _CHANCE[which], protocol)
            images = np.concatenate(drawn[count])
            scores[f"fid.{name}"] = distance.score(f"fid.{name}", images, protocol)
        if which == "one":
            scores |= _instead(bench, drawn[0], scores["one.docs_0"])
    return Measured(
        scores,
        plots=(_accuracy(scores), _distances(scores)),
        tables=(_table(scores),),
        figures=tuple(figures),
    )


def _instead(
    bench: Bench, drawn: Sequence[UInt8[np.ndarray, "B Y X 3"]], asked: Score
) -> dict[str, Score]:
    """What is drawn of an emblem that no document shows: how often one of training's."""
    known = catalogue(0, EMBLEMS)
    numbers = {look: number for number, look in enumerate(known.looks)}
    rank = [[_rank(reading.scene, numbers) for reading in read_batch(own)] for own in drawn]
    shares = _shares(known)
    tops = {"any_of_training": known.training, "most_frequent": 1, "ten_most_frequent": 10}
    out = {}
    for name, top in tops.items():
        protocol = dataclasses.replace(
            asked.protocol,
            reader=f"emblems.read: the emblem is among the {top} most frequent ones of training",
        )
        verdicts = np.asarray(rank) < top
        by_chance = 0.0 if top == known.training else float(shares[:top].sum())
        out[f"instead.{name}"] = bench.share(f"instead.{name}", verdicts, by_chance, protocol)
    return out


def _rank(scene, numbers) -> float:
    """The rank by frequency of a scene's emblem among those of training, infinite of no such."""
    if scene is None or len(scene.emblems) != 1:
        return np.inf
    number = numbers.get(scene.emblems[0].look, -1)
    return float(number - MEMORY_ONLY) if number >= MEMORY_ONLY else np.inf


def _shares(known: Catalogue) -> np.ndarray:
    """How much of training's emblem documents each emblem has: half of them go round in turn."""
    zipf = np.diff(np.asarray(known.zipf, np.float64), prepend=0.0)
    return (zipf / zipf.sum() + 1 / known.training) / 2


def _accuracy(scores: Scores) -> Plot:
    return _over_documents("accuracy", "Pictures that are exactly right", "share", scores, "")


def _distances(scores: Scores) -> Plot:
    title = "FID by our CLIP's picture features"
    return _over_documents("fid", title, "FID (lower is better)", scores, "fid.")


def _over_documents(name: str, title: str, y: str, scores: Scores, prefix: str) -> Plot:
    series = {
        words: tuple(
            Point(count, score.value, score.interval)
            for count in COUNTS
            for score in [scores[f"{prefix}{which}.docs_{count}"]]
        )
        for which, (_, words) in KINDS.items()
    }
    return Plot(name, title, "retrieved documents", y, series)


def _table(scores: Scores) -> Table:
    rows = []
    for count, paper in zip(COUNTS, PAPER_FID, strict=True):
        cells = [str(count), f"{paper:.2f}"]
        for which in KINDS:
            score, fid = (scores[f"{prefix}{which}.docs_{count}"] for prefix in ("", "fid."))
            cells += [percent(score), f"{fid.value:.1f}"]
        rows.append(tuple(cells))
    columns = ["documents", "the paper's FID, MS-COCO"]
    for _, words in KINDS.values():
        columns += [f"{words}: right", f"{words}: our FID"]
    return Table("Table 1's shape: documents at test", tuple(columns), tuple(rows))


# ------------------------------------------------------------------------- rules of the choice


def _rules(bench: Bench, bank: Bank) -> Measured:
    """Two-emblem prompts with two documents chosen by other rules."""
    every = bench.asked("heldout_pair")
    generator, scores = bench.generator, {}
    for name, (words, change) in RULES.items():
        config = dataclasses.replace(generator.retriever.config, **change)
        retriever = Retriever(generator.encoder, bank, config)
        right, found_both = [], []
        for seed, asked in enumerate(every):
            texts = [prompt.text for prompt in asked]
            shown = retriever.retrieve([(text, None) for text in texts], 2)
            found_both.append(
                [
                    {e.name for e in prompt.scene.emblems}
                    <= {s for d in documents if d.meta.has_image for s in d.meta.subjects}
                    for prompt, documents in zip(asked, shown, strict=True)
                ]
            )
            images = bench.draw(texts, shown, seed)
            right.append(confirms_batch(images, [prompt.scene for prompt in asked]))
        protocol = bench.protocol(
            "emblems heldout_pair",
            content(every),
            _SPLIT,
            _READER,
            bank=bank,
            retrieval=config,
            retrieved=2,
            documents=f"live retrieval: {words}",
        )
        read = dataclasses.replace(protocol, reader="two documents show both emblems")
        for what, verdicts, chance, stamp in (
            ("right", right, _CHANCE["two"], protocol),
            ("both_found", found_both, 0.0, read),
        ):
            key = f"rules.{name}.{what}"
            scores[key] = bench.share(key, np.asarray(verdicts), chance, stamp)
    rows = tuple(
        (words, *(percent(scores[f"rules.{name}.{what}"]) for what in ("both_found", "right")))
        for name, (words, _) in RULES.items()
    )
    columns = ("how two documents are chosen", "they show both emblems", "picture right")
    return Measured(scores, tables=(Table("Without the diversity rule", columns, rows),))


# -------------------------------------------------------------------------- pair, image, text


def _halves(bench: Bench, bank: Bank) -> Measured:
    """One-emblem prompts with the best document, or with only its image or its text."""
    every = bench.asked("heldout")
    vocab, scores = bench.generator.vocab, {}
    for name, kept in HALVES.items():
        right = []
        for seed, asked in enumerate(every):
            texts = [prompt.text for prompt in asked]
            found = bench.generator.retrieve(texts=texts, k=1)
            shown = [[_half(document, kept, vocab) for document in own] for own in found]
            images = bench.draw(texts, shown, seed)
            right.append(confirms_batch(images, [prompt.scene for prompt in asked]))
        protocol = bench.protocol(
            "emblems heldout",
            content(every),
            _SPLIT,
            _READER,
            bank=bank,
            retrieved=1,
            documents=f"live retrieval by the prompt's text, of the best its {name}",
        )
        scores[f"kind.{name}"] = bench.share(
            f"kind.{name}", np.asarray(right), _CHANCE["one"], protocol
        )
    rows = tuple((name, percent(scores[f"kind.{name}"])) for name in HALVES)
    title = "One document: whole, or one half of it"
    return Measured(scores, tables=(Table(title, ("shown", "picture right"), rows),))


def _half(document: Retrieved, kept: tuple[type, ...], vocab: Vocab) -> ShownDocument:
    """The segments of these types; a document that has none of them is shown whole."""
    segments = tuple(s for s in parse(document.ids, vocab) if isinstance(s, kept))
    return render(segments, vocab) if segments else document


# ----------------------------------------------------------------------------------------- the row


def _apart(lower: str, higher: str) -> Callable[[Scores], bool]:
    return lambda scores: scores[lower].interval[1] < scores[higher].interval[0]


def _falls(which: str) -> Callable[[Scores], bool]:
    """Whether FID falls with each document."""
    names = [f"fid.{which}.docs_{count}" for count in COUNTS]
    return lambda scores: all(scores[a].value > scores[b].value for a, b in pairwise(names))


def _above_chance(name: str) -> Callable[[Scores], bool]:
    return lambda scores: above_chance(scores[name])


def _headline(scores: Scores) -> str:
    one, two = (
        " / ".join(f"{scores[f'{which}.docs_{count}'].value:.1%}" for count in COUNTS)
        for which in KINDS
    )
    on, off = (scores[f"rules.{rule}.right"].value for rule in ("clauses", "clauses_off"))
    return (
        f"with 0 / 1 / 2 documents one memory-only emblem is drawn in {one}, two in {two}; "
        f"without the diversity rule pairs fall from {on:.1%} to {off:.1%}"
    )


ROW = Row(
    name="documents",
    title="Documents at test",
    claim="More retrieved documents, better images: CM3Leon-7B has an FID of 10.82 / 5.78 / 4.88 "
    "on MS-COCO with 0 / 1 / 2 documents at test. Documents should hold both text and image, and "
    "differ from each other. A rare flag that no document shows becomes the one seen most often.",
    source="CM3Leon (arXiv 2309.02591), table 1 and section 2.1; an article that explains it to "
    "practitioners",
    how="Prompts name one or two emblems that only the memory bank of 51,000 documents shows; a "
    "program reads whether the image is exactly right. FID is taken with the shipped CLIP's "
    "image features, since Inception's weights are not shipped, and compares with no other FID. "
    "Rules of the choice are changed at test alone.",
    seconds=720,
    measure=_measure,
    headline=_headline,
    targets=(
        Target("two emblems, 2 documents: at least 80 %", lambda s: s["two.docs_2"].value >= 0.8),
        Target("two emblems, 1 document: at most 10 %", lambda s: s["two.docs_1"].value <= 0.1),
        Target("two emblems, none: at most 2 %", lambda s: s["two.docs_0"].value <= 0.02),
        Target(
            "two emblems: the interval of 2 documents lies apart from those of 0 and 1",
            lambda s: all(_apart(f"two.docs_{k}", "two.docs_2")(s) for k in (0, 1)),
        ),
        Target(
            "one emblem: 1 and 2 documents at least 50 points above none",
            lambda s: all(s[f"one.docs_{k}"].value >= s["one.docs_0"].value + 0.5 for k in (1, 2)),
        ),
        Target(
            "one emblem: 2 documents not worse than 1, within the interval",
            lambda s: s["one.docs_2"].interval[1] >= s["one.docs_1"].value,
        ),
        *(
            Target(
                f"{words}: FID falls with each document",
                _falls(which),
            )
            for which, (_, words) in KINDS.items()
        ),
        Target(
            "without the diversity rule fewer pairs are right, the intervals apart",
            _apart("rules.clauses_off.right", "rules.clauses.right"),
        ),
        Target(
            "a document's halves show less than the whole",
            lambda s: all(_apart(f"kind.{half}", "kind.pair")(s) for half in ("picture", "text")),
        ),
        *(
            Target(
                f"without documents training's {words} than seen in it",
                _above_chance(name),
            )
            for name, words in (
                ("instead.most_frequent", "most frequent emblem is drawn more often"),
                ("instead.ten_most_frequent", "ten most frequent emblems are drawn more often"),
            )
        ),
    ),
    remark="One document says all of one emblem, so a second one adds nothing to be seen; of two "
    "emblems one document shows one, so that none and one are alike at zero. Without documents two "
    "of three images show an emblem of training, and the ten most frequent ones stand out; the "
    "most frequent one alone is in less than one of a hundred documents, and too few images show "
    "it to tell. Shipped, the rule of diversity is a document for each clause in turn. The whole "
    "caption, which is the paper's query, lies between two things and seldom finds both, and the "
    "decoder was trained with documents in the order of clauses.",
)
