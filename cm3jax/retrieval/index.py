"""Which index a bank is searched with, and where ScaNN's is kept: built once, then read."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath

from cm3jax.config import RetrievalConfig
from cm3jax.io.folders import settle
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import SAVED, SAVED_TRAINING
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.interface import Index, Neighbours, QueryVectors
from cm3jax.retrieval.milvus import MilvusIndex, forget
from cm3jax.retrieval.scann import ScannIndex, saved_files
from cm3jax.shapes import Float

SHARD = 1 << 24
"""Documents of one ScaNN index; a larger bank has several."""
_EXACT_UP_TO = 100_000
IndexKind = Literal["auto", "exact", "scann", "milvus"]
Ask = Callable[[], QueryVectors]
"""Makes the queries that a new ScaNN index chooses its effort by; called only to build one."""


def _no_queries() -> QueryVectors:
    return {}


def keep_index(bank: Bank, config: RetrievalConfig, ask: Ask = _no_queries) -> None:
    """Build and save the bank's ScaNN index, if that is what `config` searches it with, unless one
    for the same recall is there.
    """
    if _is_scann(len(bank), config.index):
        _keep(bank.path / SAVED, bank.vectors, config.recall, ask)


def training_index(bank: Bank, config: RetrievalConfig, ask: Ask = _no_queries) -> Index:
    """The index of the documents that are not held out; its ids count only those.

    Training asks no server, so `milvus` means `auto` here. A ScaNN index is built once and saved,
    so that all processes that prepare a corpus read the same one.
    """
    shown = np.flatnonzero(~bank.held_out)
    vectors = bank.vectors[shown] if len(shown) < len(bank) else bank.vectors
    if not _is_scann(len(shown), config.index):
        return ExactIndex(vectors)
    saved = bank.path / (SAVED if len(shown) == len(bank) else SAVED_TRAINING)
    _keep(saved, vectors, config.recall, ask)
    return _load(saved, vectors)


def _is_scann(size: int, kind: IndexKind) -> bool:
    """Whether ScaNN searches a bank of `size` documents."""
    return kind == "scann" or (kind != "exact" and size > _EXACT_UP_TO)


def open_index(bank: Bank, kind: IndexKind = "auto", address: str = "") -> Index:
    """The index of a bank: a saved ScaNN index where `keep_index` left one.

    `address` is that of a Milvus server, for the kind `milvus`.
    """
    if kind == "milvus":
        return MilvusIndex(bank.vectors, address)
    saved = bank.path / SAVED
    if kind != "exact" and _stands(saved, bank.vectors):
        return _load(saved, bank.vectors)
    if _is_scann(len(bank), kind):
        return ScannIndex.build(bank.vectors)
    return ExactIndex(bank.vectors)


@contextlib.contextmanager
def replacing_bank(bank: Bank | None, config: RetrievalConfig) -> Iterator[None]:
    """Replace a bank, if there is one, in the body: a server forgets its vectors before, so that a
    kill leaves none there, and after, since who opened the old bank meanwhile sent them again.

    Raises `UserError` where `config` names a server that does not answer.
    """
    if bank is None or config.index != "milvus":
        yield
        return
    forget(bank.vectors, config.milvus)
    try:
        yield
    finally:
        forget(bank.vectors, config.milvus)


class ShardedIndex:
    """Indexes of consecutive parts of a bank, which answer as one index of the whole."""

    def __init__(self, parts: Sequence[Index], sizes: Sequence[int]):
        self._parts = parts
        self._firsts = np.cumsum([0, *sizes[:-1]])

    def search(self, queries: Float[np.ndarray, "B E"], k: int) -> Neighbours:
        """The `k` best documents that the parts find, fewer when the bank has fewer."""
        found = [part.search(queries, k) for part in self._parts]
        firsts = zip(found, self._firsts, strict=True)
        ids = np.concatenate([part.ids + first for part, first in firsts], 1)
        scores = np.concatenate([part.scores for part in found], 1)
        order = np.lexsort((ids, -scores))[:, :k]
        return Neighbours(*(np.take_along_axis(part, order, axis=1) for part in (ids, scores)))


def _keep(path: epath.Path, vectors: Float[np.ndarray, "M E"], recall: float, ask: Ask) -> None:
    for name, part in _parts(vectors).items():
        if not ScannIndex.stands(path / name, part, recall):
            ScannIndex.build(part, ask(), recall).save(path / name)


def _stands(path: epath.Path, vectors: Float[np.ndarray, "M E"]) -> bool:
    """Whether all parts are saved; a build that was killed or still runs has saved only some."""
    parts = [path / name for name in _parts(vectors)]
    for part in parts:
        settle(part, saved_files)
    return all((part / "index.json").exists() for part in parts)


def _load(path: epath.Path, vectors: Float[np.ndarray, "M E"]) -> Index:
    parts = _parts(vectors)
    indexes = [ScannIndex.load(path / name, part) for name, part in parts.items()]
    if len(indexes) == 1:
        return indexes[0]
    return ShardedIndex(indexes, [len(part) for part in parts.values()])


def _parts(vectors: Float[np.ndarray, "M E"]) -> dict[str, Float[np.ndarray, "_ E"]]:
    """Consecutive parts of the vectors, by name; their indexes are built one after another."""
    firsts = range(0, max(len(vectors), 1), SHARD)
    return {f"{first // SHARD:05d}": vectors[first : first + SHARD] for first in firsts}
