"""Requests on their way through the engine."""

import dataclasses
from collections.abc import Callable

import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode.loop import Sample
from cm3jax.generation.attribution import DocumentEffect
from cm3jax.generation.requests import PromptRequest
from cm3jax.shapes import Int


@dataclasses.dataclass(frozen=True, eq=False)
class ServedRequest:
    """One request of the engine, and how many samples of it."""

    request: PromptRequest
    config: DecodeConfig
    seed: int
    samples: int
    rows: bool
    """Whether its images are sent row by row."""
    watched: bool
    """Whether what is not done yet is sent."""
    attribute: bool
    """Whether what each document did is measured."""


@dataclasses.dataclass(eq=False)
class Drawing:
    """A request's samples; the engine fills them in."""

    asked: ServedRequest
    changed: Callable[[], None]
    """Called by the engine's thread at the end, and after chunks before it if it is watched."""
    emitted: dict[int, Int[np.ndarray, " _"]] = dataclasses.field(default_factory=dict)
    """The ids that each running sample has so far."""
    drawn: dict[int, Sample] = dataclasses.field(default_factory=dict)
    """Samples that are whole, by number."""
    effects: dict[int, list[DocumentEffect]] = dataclasses.field(default_factory=dict)
    """What each document did for them, where it is asked for."""
    done: dict[int, Sample] = dataclasses.field(default_factory=dict)
    """Samples that nothing is left to do for, by number."""
    error: Exception | None = None
    """Why there will be no more."""
    guest: bool = False
    """Whether it is drawn in slots of a wider class than its own."""
    number: int = -1
    started: float = 0.0
    begun: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.error is not None or len(self.done) == self.asked.samples
