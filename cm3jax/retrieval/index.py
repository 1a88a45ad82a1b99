"""Maximum inner product search over document vectors: exact in JAX, or ScaNN.

Exact search is the reference, and on accelerators the engine for large banks: the vectors are
spread over all devices, each finds its own best k, and only those travel.
"""

import functools
import os
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3jax.errors import UserError
from cm3jax.files import digest, read_json, write_json
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.milvus import MilvusIndex
from cm3jax.retrieval.protocol import Index, Neighbours
from cm3jax.shapes import Array, Float, Int

SAVED = "scann"
"""Where in a bank's directory its saved index stands."""
_EXACT_UP_TO = 100_000
Kind = Literal["auto", "exact", "scann", "milvus"]


class ExactIndex:
    """All inner products, chunk by chunk. With a mesh, each device holds a share of the bank."""

    queries = 256
    """Queries of one compiled call."""
    chunk = 8192
    """Documents scored at once on one device: `queries` x `chunk` scores exist at a time."""

    def __init__(self, vectors: Float[np.ndarray, "M E"], mesh: Mesh | None = None):
        self.size = len(vectors)
        shards = mesh.size if mesh else 1
        share = -(-max(self.size, 1) // shards)
        self._chunk = min(self.chunk, share)
        share = -(-share // self._chunk) * self._chunk
        padded = np.zeros((shards * share, vectors.shape[1]), np.float32)
        padded[: self.size] = vectors
        if mesh:
            rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self.vectors = jax.device_put(padded, rows)
        else:
            self.vectors = jnp.asarray(padded)
        self._mesh = mesh
        self.program = jax.jit(self._search, static_argnames="k")

    def search(self, queries: Float[np.ndarray, "B E"], k: int) -> Neighbours:
        """The `k` best documents of each query, fewer when the bank has fewer."""
        k = min(k, self.size)
        ids = np.zeros((len(queries), k), np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        for start in range(0, len(queries) if k else 0, self.queries):
            part = np.asarray(queries[start : start + self.queries], np.float32)
            full = np.pad(part, ((0, self.queries - len(part)), (0, 0)))
            best, found = self.program(full, self.vectors, k=k)
            scores[start : start + len(part)] = np.asarray(best)[: len(part)]
            ids[start : start + len(part)] = np.asarray(found)[: len(part)]
        return Neighbours(ids, scores)

    def _search(self, queries: Float[Array, "B E"], vectors: Float[Array, "M E"], k: int):
        """Scores and ids [B k]; compiled as `program`."""
        local = functools.partial(_local_best, k=k, chunk=self._chunk, size=self.size)
        if self._mesh is None:
            return local(queries, vectors, 0)
        axes = self._mesh.axis_names

        def on_shard(queries, vectors):
            scores, ids = local(queries, vectors, jax.lax.axis_index(axes) * len(vectors))
            # Shards come in order of their ids, so that top_k still prefers the lower id.
            scores = jax.lax.all_gather(scores, axes, axis=1, tiled=True)
            ids = jax.lax.all_gather(ids, axes, axis=1, tiled=True)
            return _best(scores, ids, k)

        everywhere, rows = PartitionSpec(), PartitionSpec(axes)
        return jax.shard_map(
            on_shard,
            mesh=self._mesh,
            in_specs=(everywhere, rows),
            out_specs=(everywhere, everywhere),
            check_vma=False,  # it can't infer that what was gathered is equal everywhere
        )(queries, vectors)


def _best(scores: Float[Array, "B C"], ids: Int[Array, "B C"], k: int):
    scores, places = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(ids, places, axis=1)


def _local_best(queries, vectors, first, *, k: int, chunk: int, size: int):
    """Best k of one device's vectors, whose first is document `first`; padding scores -inf."""

    def step(best, block):
        start, rows = block
        scores = jnp.einsum("be,me->bm", queries, rows, precision=jax.lax.Precision.HIGHEST)
        ids = start + jnp.arange(chunk, dtype=jnp.int32)
        scores = jnp.where(ids < size, scores, -jnp.inf)
        scores, places = jax.lax.top_k(scores, min(k, chunk))
        # The running best comes first and has lower ids: ties stay with the lower id.
        merged = jnp.concatenate([best[0], scores], 1), jnp.concatenate([best[1], ids[places]], 1)
        return _best(*merged, k), None

    blocks = vectors.reshape(-1, chunk, vectors.shape[1])
    starts = first + chunk * jnp.arange(len(blocks), dtype=jnp.int32)
    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    return jax.lax.scan(step, nothing, (starts, blocks))[0]


class ScannIndex:
    """ScaNN (Guo et al. 2020): approximate search on one machine.

    Brute force below 10,000 documents, quantised scores with exact reordering up to 100,000,
    a partition tree in front of them above.
    """

    def __init__(self, searcher, fingerprint: str, size: int):
        self._searcher = searcher
        self._fingerprint = fingerprint
        self.size = size

    @classmethod
    def build(cls, vectors: Float[np.ndarray, "M E"]) -> "ScannIndex":
        """Train the partition and the codes on the vectors and index them."""
        from scann import scann_ops_pybind

        vectors = np.ascontiguousarray(vectors, np.float32)
        size = len(vectors)
        builder = scann_ops_pybind.builder(vectors, 10, "dot_product")
        if size < 10_000:
            builder = builder.score_brute_force()
        else:
            if size > _EXACT_UP_TO:
                leaves = round(2 * size**0.5)
                builder = builder.tree(
                    leaves, leaves // 10, training_sample_size=min(size, 250_000)
                )
            builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(500)
        return cls(builder.build(), digest(vectors), size)

    def search(self, queries: Float[np.ndarray, "B E"], k: int) -> Neighbours:
        """The `k` best documents that it finds, fewer when the bank has fewer."""
        k = min(k, self.size)
        queries = np.ascontiguousarray(queries, np.float32)
        ids, scores = self._searcher.search_batched(
            queries, final_num_neighbors=k, pre_reorder_num_neighbors=max(500, 4 * k)
        )
        order = np.lexsort((ids, -scores))
        ids, scores = (np.take_along_axis(part, order, axis=1) for part in (ids, scores))
        return Neighbours(ids.astype(np.int64), scores.astype(np.float32))

    def save(self, path: epath.PathLike) -> None:
        """Write the index; the directory may be moved afterwards."""
        path = epath.Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self._searcher.serialize(os.fspath(path), relative_path=True)
        write_json(path / "index.json", {"vectors": self._fingerprint, "documents": self.size})

    @classmethod
    def load(cls, path: epath.PathLike, vectors: Float[np.ndarray, "M E"]) -> "ScannIndex":
        """Read a saved index; `UserError` if it is missing or was built for other vectors."""
        from scann import scann_ops_pybind

        path = epath.Path(path)
        made = read_json(path / "index.json", "the ScaNN index")
        if made["vectors"] != digest(np.asarray(vectors)):
            raise UserError(
                f"the ScaNN index {path} was built for other vectors; build it with launch.index."
            )
        searcher = scann_ops_pybind.load_searcher(os.fspath(path))
        return cls(searcher, made["vectors"], made["documents"])


def build_index(
    vectors: Float[np.ndarray, "M E"],
    kind: Kind = "auto",
    mesh: Mesh | None = None,
) -> ExactIndex | ScannIndex:
    """An index of the vectors; `mesh` spreads an exact one over its devices."""
    if _is_scann(len(vectors), kind):
        return ScannIndex.build(vectors)
    return ExactIndex(vectors, mesh)


def training_index(bank: Bank, kind: Kind = "auto") -> Index:
    """The index of the documents that are not held out; its ids count those alone.

    Training asks no server: `milvus` is as `auto` here. ScaNN's is built once and saved, so that
    all who prepare a corpus read the same one.
    """
    shown = np.flatnonzero(~bank.held_out)
    vectors = bank.vectors[shown] if len(shown) < len(bank) else bank.vectors
    if not _is_scann(len(shown), kind):
        return ExactIndex(vectors)
    saved = bank.path / (SAVED if len(shown) == len(bank) else f"{SAVED}-training")
    if not (saved / "index.json").exists():
        ScannIndex.build(vectors).save(saved)
    return ScannIndex.load(saved, vectors)


def _is_scann(size: int, kind: Kind) -> bool:
    return kind == "scann" or (kind != "exact" and size > _EXACT_UP_TO)


def open_index(bank: Bank, kind: Kind = "auto", address: str = "") -> Index:
    """The index of a bank: a saved ScaNN index where `launch.index build` left one.

    `address` is that of a Milvus server, for the kind `milvus`.
    """
    if kind == "milvus":
        return MilvusIndex(bank.vectors, address)
    saved = bank.path / SAVED
    if kind != "exact" and (saved / "index.json").exists():
        return ScannIndex.load(saved, bank.vectors)
    return build_index(bank.vectors, kind)
