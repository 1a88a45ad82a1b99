"""How often each corpus of a mixture gives a training row."""

from collections.abc import Sequence

import numpy as np

from cm3jax.config import DataConfig
from cm3jax.data.cm3_rows import CorpusRows


def row_weights(
    data: DataConfig, corpora: Sequence[CorpusRows], shares: Sequence[float] = ()
) -> list[float]:
    """How often each corpus of `data.mixture` gives a row, in proportion.

    As the mixture says or, with `data.resample`, so that the corpora are seen in the mixture's
    shares of records, except that none is seen less or more often than it says (section 4).
    `shares` replace the mixture's weights.
    """
    shares = list(shares or (weight for _, weight in data.mixture[: len(corpora)]))
    if data.resample is None:
        return shares
    sizes = [len(rows.corpus) for rows in corpora]
    passes = resampled(sizes, shares, *data.resample)
    return [times * rows.count for times, rows in zip(passes, corpora, strict=True)]


def resampled(
    sizes: Sequence[int], shares: Sequence[float], low: float, high: float
) -> list[float]:
    """How often each corpus, of `sizes` records, is seen while all are seen once on average: what
    gives it its share of all records, clipped to `low` and `high`."""
    wanted = np.asarray(shares) / sum(shares) * sum(sizes) / np.asarray(sizes)
    return np.clip(wanted, low, high).tolist()
