"""Which index a bank is searched with, and where ScaNN's is kept: built once, then read."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from etils import epath

from cm3jax.config import RetrievalConfig
from cm3jax.files import read_json
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.milvus import MilvusIndex
from cm3jax.retrieval.protocol import Index, Queries
from cm3jax.retrieval.scann import ScannIndex
from cm3jax.shapes import Float

SAVED = "scann"
"""Where in a bank's directory its saved index stands."""
_EXACT_UP_TO = 100_000
Kind = Literal["auto", "exact", "scann", "milvus"]
Ask = Callable[[], Queries]
"""Makes the queries that a new ScaNN index chooses its effort by; called only to build one."""


def _no_queries() -> Queries:
    return {}


def keep_index(bank: Bank, config: RetrievalConfig, ask: Ask = _no_queries) -> None:
    """Build and save the bank's ScaNN index, if that is what `config` searches it with, unless one
    for the same recall stands."""
    if _is_scann(len(bank), config.index):
        _keep(bank.path / SAVED, bank.vectors, config.recall, ask)


def training_index(bank: Bank, config: RetrievalConfig, ask: Ask = _no_queries) -> Index:
    """The index of the documents that are not held out; its ids count those alone.

    Training asks no server: `milvus` is as `auto` here. ScaNN's is built once and saved, so that
    all who prepare a corpus read the same one.
    """
    shown = np.flatnonzero(~bank.held_out)
    vectors = bank.vectors[shown] if len(shown) < len(bank) else bank.vectors
    if not _is_scann(len(shown), config.index):
        return ExactIndex(vectors)
    saved = bank.path / (SAVED if len(shown) == len(bank) else f"{SAVED}-training")
    _keep(saved, vectors, config.recall, ask)
    return ScannIndex.load(saved, vectors)


def _keep(path: epath.Path, vectors: Float[np.ndarray, "M E"], recall: float, ask: Ask) -> None:
    made = path / "index.json"
    if made.exists():
        about = read_json(made, "the ScaNN index")
        if about.get("effort", {}).get("wanted") == recall:
            return
    ScannIndex.build(vectors, ask(), recall).save(path)


def _is_scann(size: int, kind: Kind) -> bool:
    return kind == "scann" or (kind != "exact" and size > _EXACT_UP_TO)


def open_index(bank: Bank, kind: Kind = "auto", address: str = "") -> Index:
    """The index of a bank: a saved ScaNN index where `keep_index` left one.

    `address` is that of a Milvus server, for the kind `milvus`.
    """
    if kind == "milvus":
        return MilvusIndex(bank.vectors, address)
    saved = bank.path / SAVED
    if kind != "exact" and (saved / "index.json").exists():
        return ScannIndex.load(saved, bank.vectors)
    return (
        ScannIndex.build(bank.vectors) if _is_scann(len(bank), kind) else ExactIndex(bank.vectors)
    )
