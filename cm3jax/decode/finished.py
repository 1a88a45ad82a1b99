"""What decoding gives."""

import dataclasses

import numpy as np

from cm3jax.shapes import Int


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What one row emitted."""

    ids: Int[np.ndarray, " T"]
    """The ids, forced ones included."""
    logprob: float
    """Log-probability of the sampled ids, in nats: of the conditional stream, among the ids that
    the grammar permits, at temperature 1."""
    sampled: int
    """How many ids were sampled, not forced."""
    temperature: float
    """The temperature that they were sampled at."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """Samples of one request that were done together."""

    request: int
    """Place of the request."""
    first: int
    """Number of the first sample."""
    samples: list[Sample]
