"""The emblems themselves: made-up names, and looks that no name gives away."""

import dataclasses
import functools
import itertools
import random

from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.scene import Look

MEMORY_ONLY = 600
"""Emblems that occur only in the memory bank and in evaluation prompts."""

TRAINING = 3000
"""Emblems that occur in training and validation, unless a dataset asks for another number."""

_CODAS = ("", "", "n", "", "", "r", "", "", "l", "")
SYLLABLES = tuple(
    f"{consonant}{vowel}{_CODAS[(7 * i + j) % len(_CODAS)]}"
    for i, consonant in enumerate("bdfgkmprstvz")
    for j, vowel in enumerate("aeiou")
)
"""What names are made of; a name has three."""


def integer(rng: random.Random, limit: int) -> int:
    """A uniform integer in [0, limit), the same on every machine and Python version.

    Python promises that only of `random()`, not of `randrange`, `choice` or `shuffle`.
    """
    return int(rng.random() * limit)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Names and looks by emblem number: the memory-only emblems, then the training ones.

    So what is said of memory-only emblems, in the bank and in prompts, is the same however many
    emblems there are for training.
    """

    names: tuple[str, ...]
    looks: tuple[Look, ...]

    @property
    def training(self) -> int:
        """How many training emblems there are."""
        return len(self.names) - MEMORY_ONLY

    @property
    def memory_only(self) -> frozenset[str]:
        """Names of the emblems that training never shows."""
        return frozenset(self.names[:MEMORY_ONLY])

    @functools.cached_property
    def zipf(self) -> tuple[int, ...]:
        """Cumulated frequencies of the training emblems by Zipf's law with the head cut off.

        The weight of rank r is 1 / (r + 8), in integers so that every machine draws alike.
        """
        return tuple(itertools.accumulate(10**9 // (rank + 8) for rank in range(self.training)))


@functools.lru_cache(maxsize=8)
def catalogue(seed: int, training: int = TRAINING) -> Catalogue:
    """The emblems of a seed; no two share a name or a look, and looks are uniform."""
    names: dict[str, None] = {}
    looks: dict[Look, None] = {}
    rng = random.Random(f"emblems {seed} names")
    while len(names) < MEMORY_ONLY + training:
        names["".join(SYLLABLES[integer(rng, len(SYLLABLES))] for _ in range(3))] = None
    rng = random.Random(f"emblems {seed} looks")
    while len(looks) < MEMORY_ONLY + training:
        first, second, third, last = (integer(rng, QUARTERS) for _ in range(4))
        looks[first, second, third, last] = None
    return Catalogue(tuple(names), tuple(looks))
