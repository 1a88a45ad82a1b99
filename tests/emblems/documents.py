"""Documents that several tests look at."""

import functools

import numpy as np

from cm3jax.emblems import Example, bank_size, example


@functools.cache
def train() -> tuple[Example, ...]:
    return tuple(example("train", index) for index in range(1500))


@functools.cache
def bank() -> tuple[Example, ...]:
    """Every seventh document."""
    return tuple(example("bank", index) for index in range(0, bank_size(), 7))


def texts(document: Example) -> list[str]:
    return [part for part in document.segments if isinstance(part, str)]


def pictures(document: Example) -> list[np.ndarray]:
    return [part for part in document.segments if not isinstance(part, str)]
