"""ScaNN (Guo et al. 2020): approximate search on one machine, at a measured recall.

A tree of 2 sqrt(M) leaves, codes of 4 bits per 2 dimensions, exact scores for the best by code. How
many leaves and candidates a search looks at is chosen when the index is built: the least work that
finds the recall asked for with queries of every kind. Kinds are measured apart because CLIP's texts
and images are far apart (the modality gap): quantised indexes have found one and lost the other.
"""

import dataclasses
import itertools
import logging
import os
import re
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.experiment_json import build
from cm3jax.io.files import digest, write_json
from cm3jax.io.folders import delete, hold, read_whole, scratch, settle, swap
from cm3jax.io.typed_json import read_fields
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.interface import Neighbours, QueryVectors, found_of
from cm3jax.shapes import Float

_log = logging.getLogger(__name__)

RECALL_AT = 10
"""Neighbours that the wanted recall is measured over."""
_BRUTE_FORCE_BELOW = 10_000
_TOGETHER = 256
"""Queries that one thread answers at a time."""
_AT_LEAST = 64
"""ScaNN answers smaller batches slightly differently, so they are padded to this many queries: an
answer must not depend on the other queries."""
_OWN_QUERIES = 1000
_ABOUT = "index.json"
_REMEDY = "build it with python -m launch.index build EXPERIMENT"
_FILES = re.compile(
    r"index\.json|\.index\.json\.[0-9a-f]+\.part|scann_(config\.pb|assets\.pbtxt)|"
    r"(ah_codebook|serialized_partitioner)\.pb|"
    r"(datapoint_to_token|dp_norms|(hashed_|int8_|bf16_)?dataset|int8_multipliers)\.npy"
)
"""Names of the files of a saved index."""
_PART, _LOCK = re.compile(r"\d{5,}|\.\d{5,}\.(new|old|part)"), re.compile(r"\.\d{5,}\.lock")
"""Names of the folders of saved indexes, on the way to their place, too, and of their locks."""
_LEAVES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
_CANDIDATES = (10, 20, 30, 40, 60, 80, 120, 160, 240, 500, 1000, 2000)


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a search for `RECALL_AT` neighbours looks at, and what that finds."""

    wanted: float
    """The recall asked for, for every kind of query; short of it where the most effort is."""
    leaves: int = 1
    candidates: int = RECALL_AT
    """Documents, best by their codes, whose exact scores are computed."""
    recall: dict[str, float] = dataclasses.field(default_factory=dict)
    """Measured with the queries that the effort was chosen by, by kind; empty: the search is
    exact."""

    def describe(self) -> str:
        """In words."""
        if not self.recall:
            return "exact, being small"
        shares = ", ".join(f"{share:.3f} by {kind}" for kind, share in self.recall.items())
        return f"recall@{RECALL_AT} {shares}, of {self.wanted} asked for"


class ScannIndex:
    """Brute force below 10,000 documents, above a tree, codes and exact reordering."""

    def __init__(self, searcher, fingerprint: str, size: int, effort: Effort):
        self._searcher = searcher
        self._searcher.set_num_threads(_threads())
        self._fingerprint = fingerprint
        self.size = size
        self.effort = effort

    @classmethod
    def build(
        cls,
        vectors: Float[np.ndarray, "M E"],
        queries: QueryVectors | None = None,
        recall: float = 0.95,
    ) -> "ScannIndex":
        """Train tree and codes on the vectors, index them, and choose the effort for a recall.

        `queries` are of the kinds that will be asked, and not those that a score will be made of;
        without any, some of the documents ask. Every kind's recall@10 is to reach `recall` by two
        standard errors.
        """
        from scann import scann_ops_pybind

        vectors = np.ascontiguousarray(vectors, np.float32)
        size, effort = len(vectors), Effort(recall)
        builder = scann_ops_pybind.builder(vectors, RECALL_AT, "dot_product")
        builder.set_n_training_threads(_threads())
        if size < _BRUTE_FORCE_BELOW:
            return cls(builder.score_brute_force().build(), digest(vectors), size, effort)
        queries = queries or {"document": vectors[:: -(-size // _OWN_QUERIES)]}
        # Before the build, so that its memory is free by then.
        exact = ExactIndex(vectors)
        best = {kind: exact.search(asked, RECALL_AT) for kind, asked in queries.items()}
        del exact
        leaves = _leaves(size)
        builder.tree(
            leaves,
            num_leaves_to_search=1,
            training_sample_size=min(size, max(50_000, 25 * leaves)),
            training_iterations=8,
            # By default, leaves that drew fewer than 50 of the sample, which is most of them, are
            # dissolved into others: the best leaf held 52 % of a million's neighbours, not 97.
            min_partition_size=1,
            spherical=True,  # vectors are of length 1, and means of tight clusters no longer
            random_init=False,  # but by k-means++, whose draws are the same every time
        )
        builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(RECALL_AT)
        index = cls(builder.build(), digest(vectors), size, effort)
        index.effort = index._choose(queries, best, recall)
        return index

    def search(self, queries: Float[np.ndarray, "B E"], k: int) -> Neighbours:
        """The `k` best documents that it finds, fewer when the bank has fewer."""
        return self._search(queries, min(k, self.size), self.effort)

    def _search(self, queries: Float[np.ndarray, "B E"], k: int, effort: Effort) -> Neighbours:
        if not len(queries) or not k:
            nothing = np.zeros((len(queries), k))
            return Neighbours(nothing.astype(np.int64), nothing.astype(np.float32))
        times = -(-k // RECALL_AT)
        asked = np.asarray(queries, np.float32)
        ids, scores = self._searcher.search_batched_parallel(
            np.pad(asked, ((0, -len(asked) % _AT_LEAST), (0, 0))),
            final_num_neighbors=k,
            pre_reorder_num_neighbors=min(times * effort.candidates, self.size),
            leaves_to_search=min(times * effort.leaves, _leaves(self.size)),
            batch_size=_TOGETHER,
        )
        ids, scores = ids[: len(asked)], scores[: len(asked)]
        short = np.isnan(scores).any(1)
        if short.any():  # their leaves hold fewer than k
            all_leaves = dataclasses.replace(effort, leaves=_leaves(self.size))
            more = self._search(asked[short], k, all_leaves)
            ids[short], scores[short] = more.ids, more.scores
        order = np.lexsort((ids, -scores))
        ids, scores = (np.take_along_axis(part, order, axis=1) for part in (ids, scores))
        return Neighbours(ids.astype(np.int64), scores.astype(np.float32))

    def _choose(self, queries: QueryVectors, best: dict[str, Neighbours], wanted: float) -> Effort:
        """The least effort by the bytes that it reads, or the most where none is enough."""
        leaves = [*(n for n in _LEAVES if n < _leaves(self.size)), _leaves(self.size)]
        efforts = sorted(itertools.product(leaves, _CANDIDATES), key=self._bytes_read)
        failed: list[tuple[int, int]] = []
        for many, candidates in efforts:
            if any(many <= n and candidates <= c for n, c in failed):
                continue
            effort = Effort(wanted, many, candidates)
            shares = {
                kind: found_of(self._search(asked, RECALL_AT, effort), best[kind])
                for kind, asked in queries.items()
            }
            recall = {kind: float(share.mean()) for kind, share in shares.items()}
            effort = dataclasses.replace(effort, recall=recall)
            sure = [s.mean() - 2 * s.std() / len(s) ** 0.5 for s in shares.values()]
            if min(sure) >= wanted:
                return effort
            failed.append((many, candidates))
        return effort

    def _bytes_read(self, effort: tuple[int, int]) -> float:
        """Per dimension: a quarter of a byte of every code in the leaves, 4 of each candidate."""
        leaves, candidates = effort
        return leaves * self.size / _leaves(self.size) / 4 + 4 * candidates

    def save(self, path: epath.PathLike) -> None:
        """Write the index in place of one that is there, which stays whole until then; the
        directory may be moved afterwards. Raises `UserError` or `OSError` on a full disk."""
        with hold(path, "saving a ScaNN index"):
            complete = scratch(path, "part")
            delete(complete, saved_files)  # left by a process that was killed
            try:
                self._write(complete)
            except BaseException:  # Ctrl-C, too
                delete(complete, saved_files)
                raise
            swap(complete, path, saved_files)

    def _write(self, folder: epath.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._searcher.serialize(os.fspath(folder), relative_path=True)
        except RuntimeError as error:  # of a full disk, which it does not name
            reason = str(error).splitlines()[0][:120]
            raise UserError(
                f"the ScaNN index cannot be written to {folder} ({reason}); make room there and "
                "give the command again."
            ) from None
        made = {
            "vectors": self._fingerprint,
            "documents": self.size,
            "effort": dataclasses.asdict(self.effort),
            "bytes": {file.name: file.stat().length for file in folder.iterdir()},
        }
        write_json(folder / _ABOUT, made)

    @classmethod
    def load(cls, path: epath.PathLike, vectors: Float[np.ndarray, "M E"]) -> "ScannIndex":
        """Read a saved index; `UserError` if it is missing, damaged or of other vectors."""
        return read_whole(path, saved_files, lambda: cls._read(epath.Path(path), vectors))

    @classmethod
    def stands(cls, path: epath.PathLike, vectors: Float[np.ndarray, "M E"], recall: float) -> bool:
        """Whether a sound index of these vectors was saved there for this recall; one that is not
        sound, and is to be built again, gives a warning.
        """
        settle(path, saved_files)
        if not (epath.Path(path) / _ABOUT).exists():
            return False
        try:
            return cls.load(path, vectors).effort.wanted == recall
        except UserError as error:
            _log.warning("building it again: %s", error)
            return False

    @classmethod
    def _read(cls, path: epath.Path, vectors: Float[np.ndarray, "M E"]) -> "ScannIndex":
        from scann import scann_ops_pybind

        fields: dict[str, Any] = {"vectors": str, "documents": int, "effort": dict[str, Any]}
        fields["bytes"] = dict[str, int] | None  # none in indexes of earlier versions
        made = read_fields(path / _ABOUT, fields, "the ScaNN index", _REMEDY)
        effort = build(Effort, made["effort"], f"{path / _ABOUT}", "effort")
        if (made["vectors"], made["documents"]) != (digest(np.asarray(vectors)), len(vectors)):
            raise UserError(f"the ScaNN index {path} was built for other vectors; {_REMEDY}.")
        for name, size in (made.get("bytes") or {}).items():  # ScaNN aborts the process for some
            found = (path / name).stat().length if (path / name).exists() else 0
            if found != size:
                raise UserError(
                    f"the ScaNN index {path} is damaged: {name} has {found} of {size} bytes; "
                    f"{_REMEDY}."
                )
        try:
            searcher = scann_ops_pybind.load_searcher(os.fspath(path))
        except Exception as error:  # ScaNN's own
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise UserError(
                f"the ScaNN index {path} cannot be read ({reason}); {_REMEDY}."
            ) from None
        return cls(searcher, made["vectors"], made["documents"], effort)


def saved_files(folder: epath.Path) -> list[str] | None:
    """The files in a folder that are a saved index's, `index.json` last; None if none is."""
    if not folder.is_dir():
        return None
    names = sorted(path.name for path in folder.iterdir() if _FILES.fullmatch(path.name))
    return sorted(names, key=lambda name: name == _ABOUT) or None


def index_files(folder: epath.Path) -> list[str]:
    """The files of the saved indexes in the folders of a folder, relative to it, and what a killed
    process left of them."""
    if not folder.is_dir():
        return []
    found = []
    for part in folder.iterdir():
        if _PART.fullmatch(part.name):
            found += [f"{part.name}/{name}" for name in saved_files(part) or ()]
        elif _LOCK.fullmatch(part.name):
            found.append(part.name)
    return found


def _leaves(size: int) -> int:
    return round(2 * size**0.5)


def _threads() -> int:
    return len(os.sched_getaffinity(0))  # ScaNN exists only for Linux
