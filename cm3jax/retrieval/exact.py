"""Exact maximum inner product search in JAX.

It is the reference, and on accelerators the engine for large banks: the vectors are spread over all
devices, each finds its own best k, and only those travel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3jax.retrieval.interface import Neighbours
from cm3jax.shapes import Array, Float, Int


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
