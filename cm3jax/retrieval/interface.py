"""The interface of every index of document vectors, whatever engine searches."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from cm3jax.shapes import Float, Int

QueryVectors = Mapping[str, Float[np.ndarray, "_ E"]]
"""Unit vectors to ask with, by kind: texts, images, pairs of both."""


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The best documents of each query, best first; equal scores in the order of their ids."""

    ids: Int[np.ndarray, "B k"]
    """Rows of the bank, int64."""
    scores: Float[np.ndarray, "B k"]
    """Inner products with the query, float32."""


@runtime_checkable
class Index(Protocol):
    """What searches a bank's vectors. Same queries, same answer."""

    def search(self, queries: Float[np.ndarray, "B E"], k: int) -> Neighbours:
        """The `k` best documents of each query, fewer when the bank has fewer."""


def found_of(found: Neighbours, best: Neighbours) -> Float[np.ndarray, " B"]:
    """The share of each query's `best` documents, or of others that score as high, in `found`.

    A bank's copies score alike, and no one can tell which of them is among the best.
    """
    return (found.scores >= best.scores[:, -1:] - 1e-5).sum(1) / best.ids.shape[1]
