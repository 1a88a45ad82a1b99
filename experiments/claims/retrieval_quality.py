"""An image is as good as what was retrieved for it."""

import dataclasses

import numpy as np

from cm3jax.emblems import confirms_batch
from cm3jax.emblems.patches import QUARTERS
from cm3jax.evaluate.protocol import Score
from cm3jax.report.plots import Plot, Point
from cm3jax.retrieval.select import drop_pieces
from experiments.claims.claim import Measured, Row, Scores, Target
from experiments.claims.harness import Bench, content

DROPPED = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Shares of the query's text pieces that are lost before it asks the index."""
_DOCUMENTS = 2


def _measure(bench: Bench) -> Measured:
    bank, every = bench.bank(), bench.asked("heldout")
    tokenizer = bench.generator.text
    scores: dict[str, Score] = {}
    lost_right: list[np.ndarray] = []
    for share in DROPPED:
        found, right = [], []
        for seed, asked in enumerate(every):
            texts = [prompt.text for prompt in asked]
            pieces = [tokenizer.encode(text) for text in texts]
            left = drop_pieces(pieces, np.arange(len(pieces)), 1, share, seed)
            queries = [tokenizer.decode(list(own)) for own in left]
            shown = bench.generator.retrieve(texts=queries, k=_DOCUMENTS)
            found.append(
                [
                    any(
                        document.meta.has_image and prompt.scene.names[0] in document.meta.subjects
                        for document in documents
                    )
                    for prompt, documents in zip(asked, shown, strict=True)
                ]
            )
            images = bench.draw(texts, shown, seed)
            right.append(confirms_batch(images, [prompt.scene for prompt in asked]))
        protocol = bench.protocol(
            "emblems heldout",
            content(every),
            "memory-only emblems, in scenes that no document shows",
            "emblems.confirms: shows the exact scene",
            bank=bank,
            retrieved=_DOCUMENTS,
            documents=f"live retrieval by the prompt's text without {share:.0%} of its pieces",
        )
        hit = dataclasses.replace(protocol, reader="a document shows the emblem")
        for what, verdicts, chance, stamp in (
            ("recall", found, 0.0, hit),
            ("accuracy", right, 1 / QUARTERS**4, protocol),
        ):
            name = f"{what}.dropped_{100 * share:.0f}"
            scores[name] = bench.share(name, np.asarray(verdicts), chance, stamp)
        lost_right.append(np.asarray(right)[~np.asarray(found)])
    missed = np.concatenate(lost_right)[None]
    stamp = dataclasses.replace(
        scores["accuracy.dropped_0"].protocol,
        documents="all of the above where no document shows the emblem",
        seeds=1,
    )
    if missed.size:
        scores["accuracy.not_found"] = bench.share(
            "accuracy.not_found", missed, 1 / QUARTERS**4, stamp
        )
    return Measured(scores, plots=(_plot(scores),))


def _names(share: float) -> tuple[str, str]:
    dropped = f"dropped_{100 * share:.0f}"
    return f"recall.{dropped}", f"accuracy.{dropped}"


def _plot(scores: Scores) -> Plot:
    pairs = sorted(
        (tuple(scores[name] for name in _names(share)) for share in DROPPED),
        key=lambda pair: pair[0].value,
    )
    drawn = tuple(Point(found.value, right.value, right.interval) for found, right in pairs)
    same = tuple(Point(f.value, f.value, (f.value, f.value)) for f, _ in pairs)
    return Plot(
        "accuracy",
        "Accuracy against recall, as ever more of the query is lost",
        "share of prompts whose two documents show the emblem",
        "share of pictures that are right",
        {"drawn": drawn, "as often as found": same},
    )


def _headline(scores: Scores) -> str:
    ends = [[scores[name].value for name in _names(share)] for share in (DROPPED[0], DROPPED[-1])]
    (first, right), (last, still) = ends
    return (
        f"with recall {first:.1%} the image is right in {right:.1%}; where {DROPPED[-1]:.0%} of "
        f"the query is lost, with recall {last:.1%} in {still:.1%}"
    )


ROW = Row(
    name="retrieval",
    title="Recall and accuracy",
    claim="Relevant documents make good images: the retriever ranks by relevance first, and "
    "loses 20 % of the query's words in training so that a model does not lean on it too much.",
    source="CM3Leon (arXiv 2309.02591), section 2.1",
    how="Prompts stay whole; the queries that find their two documents lose ever more of their "
    "text pieces. Recall is the share of prompts for which a retrieved image shows the emblem.",
    seconds=300,
    measure=_measure,
    headline=_headline,
    targets=(
        Target(
            "the image is right as often as a document shows its emblem, to 5 points",
            lambda s: all(
                abs(s[recall].value - s[accuracy].value) <= 0.05
                for recall, accuracy in map(_names, DROPPED)
            ),
        ),
        Target(
            "recall and accuracy fall together from the whole query to its worst",
            lambda s: all(
                s[worst].interval[1] < s[whole].interval[0]
                for whole, worst in zip(_names(DROPPED[0]), _names(DROPPED[-1]), strict=True)
            ),
        ),
        Target(
            "where no document shows it: at most 1 %",
            lambda s: "accuracy.not_found" in s and s["accuracy.not_found"].value <= 0.01,
        ),
    ),
    remark="This shows that images need relevant documents; what query dropout does for training "
    "was not measured.",
)
