"""Our indexes compared with blocked NumPy and FAISS, on vectors like CLIP's, in one process.

Documents and queries have latent points around cluster centres, seen through a text map, an image
map, or both, around two different means: the modality gap. Parameters of ours are chosen by other
queries than those that the recall is of. Every engine gets the cores that the process may run on:
`taskset -c 0,1` before the command gives two.
"""

import argparse
import dataclasses
import gc
import importlib.util
import itertools
import os
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cm3jax.errors import UserError
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.interface import QueryVectors
from cm3jax.retrieval.scann import ScannIndex
from cm3jax.shapes import Float, Int

K = 10
DIM = 512
_QUERIES = 1000
_EXACT_QUERIES = 256
"""Queries of each kind that exact search is timed with; all are answered for the truth."""
_ROUNDS = 5
_TUNING = 500
_BLOCK = 65_536
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_FACTORS = (1, 2, 4, 8, 16, 20, 24, 32, 64)
"""FAISS's settings: lists searched, and how many times `K` candidates are scored exactly."""
_CODES = "PQ128x4fs"
_GROWTH = (100_000_000, 1_000_000_000)

Search = Callable[[Float[np.ndarray, "B E"]], Int[np.ndarray, "B k"]]
"""The ids of each query's `K` best documents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """A bank's vectors, and queries by kind (`text`, `image`, `both`) in two sets."""

    documents: Float[np.ndarray, "M E"]
    scored: QueryVectors
    tuning: QueryVectors


def clip_like(documents: int, queries: int, tuning: int, seed: int) -> Vectors:
    """Unit float32 vectors of 2000 clusters and 64 latent dimensions, a function of the arguments.

    A document's vector is the renormalised mean of its text's and its image's; a query is
    another look at a document's latent point.
    """
    rng, latent = np.random.default_rng(seed), 64

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    common = normal(latent, DIM)
    maps = [(common + 0.3 * normal(latent, DIM)) / latent**0.5 for _ in range(2)]
    means = [1.2 * normal(DIM) for _ in range(2)]
    centres = normal(2000, latent)

    def see(points: np.ndarray) -> list[np.ndarray]:
        """The points as texts and as images."""
        noise = (0.1 * normal(len(points), DIM) for _ in range(2))
        parts = zip(maps, means, noise, strict=True)
        return [_unit(points @ seen + mean + extra) for seen, mean, extra in parts]

    asked = rng.choice(documents, min(queries + tuning, documents), replace=False)
    origins = np.zeros((len(asked), latent), np.float32)
    vectors = np.empty((documents, DIM), np.float32)
    for start in range(0, documents, _BLOCK):
        part = slice(start, min(start + _BLOCK, documents))
        size = part.stop - start
        points = centres[rng.integers(0, len(centres), size)] + 0.5 * normal(size, latent)
        vectors[part] = _unit(np.add(*see(points)))
        here = (asked >= start) & (asked < part.stop)
        origins[here] = points[asked[here] - start]
    text, image = see(origins + 0.2 * normal(*origins.shape))
    kinds = {"text": text, "image": image, "both": _unit(text + image)}
    cut = len(asked) * queries // (queries + tuning)
    scored = {kind: part[:cut] for kind, part in kinds.items()}
    return Vectors(vectors, scored, {kind: part[cut:] for kind, part in kinds.items()})


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bench_retrieval(options: argparse.Namespace) -> dict[str, Any]:
    """Recall, queries a second, build time and memory of each engine; growth by arithmetic.

    Raises `UserError` for too few documents to ask about.
    """
    if options.documents < _QUERIES:
        raise UserError(f"--documents {options.documents} are too few; give at least {_QUERIES}.")
    begun, busy = time.perf_counter(), os.getloadavg()[0]
    vectors = clip_like(options.documents, _QUERIES, _TUNING, options.seed)
    bank, scored = vectors.documents, vectors.scored
    few = np.concatenate([queries[:_EXACT_QUERIES] for queries in scored.values()])
    engines = {"jax": _jax, "numpy": _numpy}
    faiss = importlib.util.find_spec("faiss") is not None
    if faiss:
        engines["faiss_flat"] = _faiss_flat

    truth: dict[str, np.ndarray] = {}
    exact: dict[str, float] = {}
    for name, make in engines.items():
        search = make(bank)
        truth = truth or {kind: search(queries) for kind, queries in scored.items()}
        exact[name] = len(few) / min(_seconds(search, few) for _ in range(2))
        del search

    built = _watched(lambda: ScannIndex.build(bank, vectors.tuning, options.recall))
    index: ScannIndex = built.made
    contenders: dict[str, Search] = {"scann": lambda queries: index.search(queries, K).ids}
    recalls = _recall(contenders["scann"], scored, truth)
    ours = built.figures | {"effort": dataclasses.asdict(index.effort), "recall": recalls}
    answer: dict[str, Any] = {
        "documents": len(bank),
        "dimensions": DIM,
        "queries_of_each_kind": _QUERIES,
        "recall_at": K,
        "cores": len(os.sched_getaffinity(0)),
        "busy_cores_before": busy,
        "versions": {name: version(name) for name in ("numpy", "jax", "scann")},
        "exact_queries_per_second": exact,
        "scann": ours,
    }
    if faiss:
        answer["versions"]["faiss-cpu"] = version("faiss-cpu")
        built = _watched(lambda: _faiss_ivfpq(bank))
        setting = _equal(built.made, scored, truth, min(recalls.values()))
        contenders["faiss_ivfpq"] = setting.search
        recall = _recall(setting.search, scored, truth)
        about = {"nprobe": setting.probes, "k_factor": setting.factor, "recall": recall}
        answer["faiss_ivfpq"] = built.figures | about
    else:
        answer["faiss_left_out_because"] = "faiss is not installed; the extra `bench` brings it"

    mixed = np.concatenate(list(scored.values()))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS):  # in turns, so that a busy machine is as busy for each
        for name, search in contenders.items():
            rates[name].append(len(mixed) / _seconds(search, mixed))
    for name, measured in rates.items():
        middle = statistics.median(measured)
        answer[name] |= {"queries_per_second": middle, "rounds": measured}
    speed = answer["scann"]["queries_per_second"]
    answer["times_fastest_exact"] = speed / max(exact.values())
    if faiss:
        answer["share_of_faiss_ivfpq"] = speed / answer["faiss_ivfpq"]["queries_per_second"]
    answer["growth"] = {str(size): _growth(size, answer) for size in _GROWTH}
    return answer | {"seconds": time.perf_counter() - begun}


def _recall(search: Search, scored: QueryVectors, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """By kind of query."""
    found = {kind: search(queries)[:, :, None] for kind, queries in scored.items()}
    return {k: float((ids == truth[k][:, None]).any(1).mean()) for k, ids in found.items()}


def _seconds(search: Search, queries: Float[np.ndarray, "B E"]) -> float:
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class _Built:
    made: Any
    seconds: float
    gigabytes: float
    """Peak memory of this process meanwhile, the vectors that were given among it."""

    @property
    def figures(self) -> dict[str, float]:
        return {"build_seconds": self.seconds, "build_peak_gigabytes": self.gigabytes}


def _watched(make: Callable[[], Any]) -> _Built:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - start
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return _Built(made, seconds, int(peak) * 1024 / 1e9)


# ------------------------------------------------------------------------------------------ others


def _jax(bank: Float[np.ndarray, "M E"]) -> Search:
    index = ExactIndex(bank)
    index.search(bank[:1], K)  # compiles
    return lambda queries: index.search(queries, K).ids


def _numpy(bank: Float[np.ndarray, "M E"]) -> Search:
    def search(queries: Float[np.ndarray, "B E"]) -> Int[np.ndarray, "B k"]:
        scores = np.full((len(queries), 0), 0, np.float32)
        ids = np.zeros((len(queries), 0), np.int64)
        for start in range(0, len(bank), _BLOCK):
            block = queries @ bank[start : start + _BLOCK].T
            best = np.argpartition(block, -K, axis=1)[:, -K:]
            scores = np.concatenate([scores, np.take_along_axis(block, best, 1)], 1)
            ids = np.concatenate([ids, best + start], 1)
        order = np.argsort(-scores, axis=1)[:, :K]
        return np.take_along_axis(ids, order, 1)

    return search


def _faiss_flat(bank: Float[np.ndarray, "M E"]) -> Search:
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(bank)
    return lambda queries: index.search(queries, K)[1]


def _faiss_ivfpq(bank: Float[np.ndarray, "M E"]) -> Any:
    """As many lists as our tree has leaves, fast-scan codes, exact reordering."""
    import faiss

    lists = round(2 * len(bank) ** 0.5)
    index = faiss.index_factory(DIM, f"IVF{lists},{_CODES},RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(bank[: max(100_000, 50 * lists)])
    index.add(bank)
    return index


@dataclasses.dataclass(frozen=True)
class _Setting:
    index: Any
    probes: int
    factor: int

    def search(self, queries: Float[np.ndarray, "B E"]) -> Int[np.ndarray, "B k"]:
        import faiss

        parameters = f"nprobe={self.probes},k_factor_rf={self.factor}"
        space: Any = faiss.ParameterSpace()  # whose types leave out that texts name parameters
        space.set_index_parameters(self.index, parameters)
        return self.index.search(queries, K)[1]


def _equal(
    index: Any, scored: QueryVectors, truth: dict[str, np.ndarray], lowest: float
) -> _Setting:
    """FAISS's fastest setting whose recall by every kind of query is at least `lowest`; its best
    where none is."""
    mixed = np.concatenate(list(scored.values()))
    settings = [_Setting(index, *pair) for pair in itertools.product(_PROBES, _FACTORS)]
    reached = {s: min(_recall(s.search, scored, truth).values()) for s in settings}
    enough = [setting for setting in settings if reached[setting] >= lowest]
    if not enough:
        return max(settings, key=lambda setting: reached[setting])
    return min(enough, key=lambda setting: _seconds(setting.search, mixed))


# ------------------------------------------------------------------------------------------ growth


def _growth(size: int, measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Memory and speed of each backend at a size, on these cores, from what was measured.

    Exact search reads every vector. ScaNN reads every centroid of its tree, the codes of as many
    leaves and the vectors of as many candidates as here; its training takes samples in proportion
    to the leaves, so that building goes with their number times that of the documents. Milvus
    builds HNSW graphs of 18 links by default, twice as many at the bottom.
    """
    here, effort = measured["documents"], measured["scann"]["effort"]

    def read(documents: int) -> float:
        leaves = 2 * documents**0.5
        searched = effort["leaves"] * documents / leaves
        return DIM * (4 * leaves + searched / 4 + 4 * effort["candidates"])

    slower = read(size) / read(here)
    vector = 4 * DIM
    return {
        "exact": {
            "gigabytes": size * vector / 1e9,
            "queries_per_second": max(measured["exact_queries_per_second"].values()) * here / size,
        },
        "scann": {
            "gigabytes": (size * (vector + DIM / 4) + 2 * size**0.5 * vector) / 1e9,
            "queries_per_second": measured["scann"]["queries_per_second"] / slower,
            "build_hours": measured["scann"]["build_seconds"] * (size / here) ** 1.5 / 3600,
        },
        "milvus": {"gigabytes": size * (vector + 2 * 18 * 4) / 1e9},
    }
