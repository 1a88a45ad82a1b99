"""Measurements of a bank and its index: does what is in it get found?"""

import dataclasses
import time

import numpy as np

from cm3jax.io.paths import matching
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.index import SAVED
from cm3jax.retrieval.interface import Index
from cm3jax.retrieval.select import NONE
from cm3jax.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Cuts that fit an encoder, cosines both."""

    relevance_cut: float
    """What only one in twenty queries scores with its own document."""
    diversity_cut: float
    """Between documents of one subject and the nearest documents of others; NaN when no two
    documents share a subject."""


def calibrate(
    text: Float[np.ndarray, "B E"],
    image: Float[np.ndarray, "B E"],
    documents: Float[np.ndarray, "B E"],
    subjects: list[tuple[str, ...]],
) -> Calibration:
    """Fit `relevance_cut` and `diversity_cut` to an encoder's unit vectors of some pairs.

    A copy of the query's document would score like the document itself: hence the first cut.
    Documents about two subjects are near to both kinds and don't count for the second.
    """
    own = np.concatenate([(text * documents).sum(1), (image * documents).sum(1)])
    single = [i for i, names in enumerate(subjects) if len(names) == 1]
    names = np.unique([subjects[i][0] for i in single], return_inverse=True)[1]
    scores = documents[single] @ documents[single].T
    same = names[:, None] == names[None, :]
    np.fill_diagonal(scores, -1.0)
    alike = scores[same & (scores > -1.0)]
    nearest = np.where(same, -1.0, scores).max(1, initial=-1.0)
    cut = float("nan")
    if len(alike):
        cut = float(np.quantile(alike, 0.05) + np.quantile(nearest, 0.95)) / 2
    return Calibration(float(np.quantile(own, 0.95)), cut)


def self_retrieval(bank: Bank, index: Index, sample: int = 1000) -> float:
    """Share of documents that their own vector finds first, or tied with the first.

    Looks at evenly spaced documents, at most `sample` of them; less than 1 means a broken index.
    """
    rows = np.arange(0, len(bank), max(1, len(bank) // sample))
    return float(np.mean(_find_themselves(bank, index, rows)))


def _find_themselves(
    bank: Bank, index: Index, rows: Int[np.ndarray, " M"]
) -> Bool[np.ndarray, " M"]:
    vectors = np.asarray(bank.vectors[rows])
    best = index.search(vectors, 1).ids[:, 0]
    own = (vectors * vectors).sum(1)
    return (vectors * bank.vectors[best]).sum(1) >= own - 1e-5


def dead_shards(bank: Bank, index: Index, sample: int = 32) -> list[str]:
    """Files of the bank none of whose documents, of `sample` at most, finds itself or an equal.

    Such a shard is in the bank and not in the index.
    """
    dead, first = [], 0
    for name, count in bank.manifest["shards"].items():
        rows = first + np.arange(0, count, max(1, count // sample))
        first += count
        if count and not _find_themselves(bank, index, rows).any():
            dead.append(name)
    return dead


def latencies(
    index: Index, queries: Float[np.ndarray, "B E"], k: int, sample: int = 200
) -> Float[np.ndarray, " M"]:
    """Seconds of single queries, one after the other; a first one, which compiles, is left out."""
    index.search(queries[:1], k)
    taken = []
    for row in range(min(sample, len(queries))):
        start = time.perf_counter()
        index.search(queries[row : row + 1], k)
        taken.append(time.perf_counter() - start)
    return np.asarray(taken)


def index_bytes(bank: Bank, index: Index) -> int:
    """Memory or disk that the index takes: its saved files, or the vectors that it searches."""
    saved = bank.path / SAVED
    if isinstance(index, ExactIndex) or not saved.exists():
        return int(bank.vectors.size) * 4
    return sum(file.stat().length for file in matching(saved, "*/*"))


def recall(index: Index, reference: Index, queries: Float[np.ndarray, "B E"], k: int) -> float:
    """Share of the reference's `k` best that the index finds among its `k` best.

    By the documents themselves, since a broken index may lie about scores; of copies, which score
    alike, it may find others than the reference did, and that counts against it.
    """
    found, best = index.search(queries, k).ids, reference.search(queries, k).ids
    return float((found[:, :, None] == best[:, None, :]).any(1).mean())


def subject_hits(ids: Int[np.ndarray, "B C"], bank: Bank, subjects: list[tuple[str, ...]]) -> float:
    """Share of queries all of whose subjects are shown by their chosen documents' images.

    Queries without a subject do not count; NaN when none has one.
    """
    hits = []
    for row, wanted in zip(ids, subjects, strict=True):
        if wanted:
            chosen = [int(i) for i in row if i != NONE and bank.has_image[i]]
            hits.append(set(wanted) <= {name for i in chosen for name in bank.meta(i).subjects})
    return float(np.mean(hits)) if hits else float("nan")
