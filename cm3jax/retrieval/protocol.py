"""What every index of document vectors answers, whatever searches."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from cm3jax.shapes import Float, Int


@dataclasses.dataclass(frozen=True)
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
