"""A bank's vectors on a Milvus server: shared by several machines, larger than one's memory.

Milvus Lite is the same in one local file, for tests and notebooks: it answers few queries a second.
Training asks neither.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.retrieval.interface import Neighbours
from cm3jax.shapes import Float, Int

_TOGETHER = 1000
"""Vectors of one request."""
_CHUNK = 65_536
"""Vectors that are read from disk at once where the server found too few."""


class Unanswered(UserError):
    """A server that holds vectors does not answer as it should."""


class MilvusIndex:
    """A collection of a server, named after the vectors that it holds, by their inner product.

    `address` is `http://HOST:19530`, or the path of a `.db` file for Milvus Lite. The collection is
    made unless it is there and complete. Raises `UserError` without pymilvus or a server.
    """

    def __init__(self, vectors: Float[np.ndarray, "M E"], address: str):
        self._client = _connect(address)
        self._vectors = vectors
        self._address = address
        self.size = len(vectors)
        self.collection = _name(vectors)
        with _asking(address):
            if not self._complete():
                self._upload(vectors)

    def search(self, queries: Float[np.ndarray, "B E"], k: int) -> Neighbours:
        """The `k` best documents that it finds, fewer when the bank has fewer.

        Where the server finds fewer, as some of its indexes do, or has forgotten the vectors since,
        the bank's own are searched. Raises `UserError` where there is no server any more.
        """
        k = min(k, self.size)
        ids = np.zeros((len(queries), k), np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        for start in range(0, len(queries) if k else 0, _TOGETHER):
            part = np.asarray(queries[start : start + _TOGETHER], np.float32)
            hits = self._ask(part, k)
            for row, found in enumerate(hits, start):
                if len(found) == k:
                    ids[row] = [hit["id"] for hit in found]
                    scores[row] = [hit["distance"] for hit in found]
                else:
                    ids[row], scores[row] = _best(self._vectors, part[row - start], k)
        order = np.lexsort((ids, -scores))
        best = (np.take_along_axis(part, order, axis=1) for part in (ids, scores))
        return Neighbours(*best)

    def _ask(self, queries: Float[np.ndarray, "B E"], k: int) -> Sequence[Sequence[Any]]:
        """What the server finds for each query."""
        with _asking(self._address):
            try:
                return self._client.search(self.collection, data=queries.tolist(), limit=k)
            except Exception:
                if self._client.has_collection(self.collection):
                    raise
                return [()] * len(queries)  # who takes documents out of the bank has deleted it

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _complete(self) -> bool:
        if not self._client.has_collection(self.collection):
            return False
        rows = self._client.query(self.collection, filter="", output_fields=["count(*)"])
        return rows[0]["count(*)"] == self.size

    def _upload(self, vectors: Float[np.ndarray, "M E"]) -> None:
        if self._client.has_collection(self.collection):  # an upload that was interrupted
            self._client.drop_collection(self.collection)
        self._client.create_collection(
            self.collection,
            dimension=vectors.shape[1],
            metric_type="IP",
            auto_id=False,
            consistency_level="Strong",  # what was uploaded is found at once
        )
        for start in range(0, self.size, _TOGETHER):
            part = np.asarray(vectors[start : start + _TOGETHER]).tolist()
            rows = [{"id": start + i, "vector": vector} for i, vector in enumerate(part)]
            self._client.insert(self.collection, rows)


def forget(vectors: Float[np.ndarray, "M E"], address: str) -> None:
    """Delete what a server holds of these vectors, if anything, as when documents are taken out of
    their bank. Raises `UserError` like `MilvusIndex`."""
    client = _connect(address)
    with _asking(address):
        client.drop_collection(_name(vectors))
    client.close()


def _best(
    vectors: Float[np.ndarray, "M E"], query: Float[np.ndarray, " E"], k: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Ids and scores of the `k` best vectors, in no order; the vectors may be mapped from disk."""
    ids, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for first in range(0, len(vectors), _CHUNK):
        new = np.asarray(vectors[first : first + _CHUNK]) @ query
        ids = np.concatenate([ids, np.arange(first, first + len(new))])
        scores = np.concatenate([scores, new])
        kept = np.lexsort((ids, -scores))[:k]
        ids, scores = ids[kept], scores[kept]
    return ids, scores


def _name(vectors: Float[np.ndarray, "M E"]) -> str:
    return f"cm3jax_{digest(np.asarray(vectors))}"


def _connect(address: str):
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise UserError(
            "retrieval.index=milvus needs pymilvus; install it (the extra `store`)."
        ) from None
    if not address:
        raise UserError(
            "retrieval.index=milvus needs retrieval.milvus: a server's address, e.g. "
            "http://localhost:19530, or the path of a .db file."
        )
    with _asking(address):
        return MilvusClient(address)


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    """Turn what a server's client raises into `Unanswered`: a server may be stopped, and a
    collection deleted by whoever takes documents out of the bank, at any time."""
    try:
        yield
    except Exception as error:  # gRPC's, pymilvus's and the file system's
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise Unanswered(
            f"Milvus at {address} does not answer as it should ({reason}); start it and give the "
            "command again, or correct retrieval.milvus."
        ) from None
