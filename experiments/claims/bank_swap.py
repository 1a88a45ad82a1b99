"""Another memory bank, other images, and nothing is trained."""

import numpy as np

from cm3jax.emblems import confirms_batch
from cm3jax.emblems.patches import QUARTERS
from cm3jax.evaluate.protocol import Score
from cm3jax.evaluate.results import Cell, Figure
from cm3jax.retrieval.retriever import Retriever
from experiments.claims.claim import Measured, Row, Scores, Table, Target, percent
from experiments.claims.harness import Bench, content

BANKS = {"old": 0, "new": 1}
"""The seeds of the datasets that the two banks hold; the weights know the first one's."""
_DOCUMENTS = 2
_SHOWN = 4
"""Figures, of the first prompts."""


def _measure(bench: Bench) -> Measured:
    every = {name: bench.asked("heldout", seed) for name, seed in BANKS.items()}
    scores: dict[str, Score] = {}
    figures: dict[int, list[Cell]] = {}
    for where, dataset in BANKS.items():
        bank = bench.bank(dataset)
        retriever = Retriever(bench.generator.encoder, bank, bench.generator.retriever.config)
        for whose, prompts in every.items():
            verdicts = []
            for seed, asked in enumerate(prompts):
                texts = [prompt.text for prompt in asked]
                shown = retriever.retrieve([(text, None) for text in texts], _DOCUMENTS)
                images = bench.draw(texts, shown, seed)
                verdicts.append(confirms_batch(images, [prompt.scene for prompt in asked]))
                if seed == 0 and whose == "new":
                    for place in range(min(_SHOWN, len(asked))):
                        figures.setdefault(place, []).extend(
                            (
                                bench.best_cell(shown[place]),
                                Cell.of(
                                    f"drawn with the {where} bank",
                                    images[place],
                                    correct=verdicts[0][place],
                                ),
                            )
                        )
            name = f"{whose}_emblems.{where}_bank"
            protocol = bench.protocol(
                f"emblems heldout, dataset seed {BANKS[whose]}",
                content(prompts),
                "memory-only emblems, in scenes that no document shows",
                "emblems.confirms: shows the exact scene",
                bank=bank,
                retrieved=_DOCUMENTS,
                documents="live retrieval by the prompt's text, best 2",
            )
            scores[name] = bench.share(name, np.asarray(verdicts), 1 / QUARTERS**4, protocol)
    rows = tuple(
        (
            f"{whose} emblems",
            *(percent(scores[f"{whose}_emblems.{where}_bank"]) for where in BANKS),
        )
        for whose in BANKS
    )
    before_and_after = [
        Figure(
            "The same prompt before and after the swap",
            every["new"][0][place].text,
            (*cells, Cell.of("as it should be", every["new"][0][place].image)),
        )
        for place, cells in figures.items()
    ]
    columns = ("drawn right", "with the old bank", "with the new bank")
    return Measured(
        scores, tables=(Table("Two banks", columns, rows),), figures=tuple(before_and_after)
    )


def _headline(scores: Scores) -> str:
    before, after, gone = (
        scores[name].value
        for name in ("new_emblems.old_bank", "new_emblems.new_bank", "old_emblems.new_bank")
    )
    return (
        f"600 new emblems are drawn right in {before:.1%} before the swap and in {after:.1%} after "
        f"it; the old ones, whose documents are gone, in {gone:.1%}"
    )


ROW = Row(
    name="bank_swap",
    title="Swapping the memory bank",
    claim="What the memory bank holds need not be in the weights: RA-CM3 and CM3Leon draw rare "
    "things from retrieved documents, so that a bank can be changed without training.",
    source="RA-CM3 (arXiv 2211.12561), through a reading note; CM3Leon (arXiv 2309.02591), section "
    "2.1; an article that explains it to practitioners",
    how="A second bank, as large as the first, holds another dataset's emblems, whose looks the "
    "weights have never seen. Prompts for 600 of its emblems, and for 600 of the first bank's, are "
    "drawn with two documents retrieved from either bank.",
    seconds=240,
    measure=_measure,
    headline=_headline,
    targets=(
        Target(
            "new emblems with the new bank: at least 85 %",
            lambda s: s["new_emblems.new_bank"].value >= 0.85,
        ),
        Target(
            "as often as old emblems with the old bank, within the intervals",
            lambda s: (
                s["new_emblems.new_bank"].interval[1] >= s["old_emblems.old_bank"].interval[0]
            ),
        ),
        Target(
            "emblems of one bank with the other: at most 2 %",
            lambda s: all(
                s[name].value <= 0.02 for name in ("new_emblems.old_bank", "old_emblems.new_bank")
            ),
        ),
    ),
)
