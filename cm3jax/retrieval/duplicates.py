"""Which documents of a bank are copies of others, exactly or nearly.

duplicates.npy   in a bank's directory: the row of the first document that each one copies, its
                 own where it copies none, int64 [M]
"""

import dataclasses

import numpy as np

from cm3jax.config import RetrievalConfig
from cm3jax.io.files import write_array
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import DUPLICATES
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.interface import Index
from cm3jax.shapes import Float, Int

_LOOKED_AT = 8
_TOGETHER = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """The copies among a bank's documents."""

    first: Int[np.ndarray, " M"]
    """The row of the first document that each one copies; its own where it copies none."""
    exact: int
    """Documents whose ids an earlier one has."""
    near: int
    """Others whose vector is closer to an earlier one's than the cut."""


def find_duplicates(
    vectors: Float[np.ndarray, "M E"], content: np.ndarray, index: Index, cut: float
) -> Duplicates:
    """Mark copies by their content's hashes [M], and near copies by the vectors' cosine.

    Near ones are looked for among each document's 8 nearest.
    """
    own = np.arange(len(vectors))
    _, places, groups = np.unique(content, return_index=True, return_inverse=True)
    first = places[groups]
    exact = first != own
    for start in range(0, len(vectors), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        found = index.search(np.asarray(vectors[part]), _LOOKED_AT)
        close = np.where(found.scores > cut, found.ids, len(vectors)).min(1, initial=len(vectors))
        first[part] = np.minimum(first[part], close)
    return Duplicates(first, int(exact.sum()), int((~exact & (first != own)).sum()))


def save_duplicates(bank: Bank, config: RetrievalConfig) -> Duplicates:
    """Find the duplicates of a bank and write them into its directory, atomically."""
    index = open_index(bank, "auto" if config.index == "milvus" else config.index)
    found = find_duplicates(bank.vectors, bank.content, index, config.duplicate_cut)
    write_array(bank.path / DUPLICATES, found.first)
    return found
