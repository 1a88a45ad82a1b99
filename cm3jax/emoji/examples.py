"""Documents of the dataset: a function of (seed, split, index) and the catalogue only.

train, validation   three in five with one thing, two in five with two
bank                every image of every thing twice, large and small, those first that training
                    never shows
"""

import dataclasses
import functools
import random
from collections.abc import Callable

import numpy as np

from cm3jax.emblems.looks import integer
from cm3jax.emblems.sample import pick
from cm3jax.emblems.scene import PLACES
from cm3jax.emoji import looks
from cm3jax.emoji.draw import draw
from cm3jax.emoji.grounds import GROUNDS
from cm3jax.emoji.looks import SIDES, EmojiCatalogue, Thing, apart
from cm3jax.emoji.scene import EmojiScene, Placed, emoji_caption
from cm3jax.shapes import UInt8

SPLITS = ("train", "validation", "bank")
_GROUNDS, _SIZES = tuple(GROUNDS), tuple(SIDES)
_PAIRS = 2  # documents of every five
_TOLD = 0.75  # of styles
_HOMES = (*("prompts", "validation") * 2, *("bank",) * 3, *("train",) * 9)


@dataclasses.dataclass(frozen=True, eq=False)
class EmojiExample:
    """One document with its ground truth."""

    key: str
    kind: str
    """`thing`, `pair`, or `memory`: an image that training never shows."""
    caption: str
    picture: UInt8[np.ndarray, "S S 3"]
    scene: EmojiScene
    source: str
    """The artists of what it shows."""
    licence: str
    """An SPDX expression of their licences."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """All documents of one catalogue and seed."""

    catalogue: EmojiCatalogue
    seed: int
    size: int
    """Pixels along one side."""

    @functools.cached_property
    def _bank(self) -> list[tuple[Thing, str, str]]:
        """Thing, style and size of each document of the bank."""
        listed = [
            (thing, style, size)
            for thing in self.catalogue.things
            for style, _ in thing.looks
            for size in _SIZES
        ]
        return sorted(listed, key=lambda entry: entry[1] not in entry[0].held_out)

    @property
    def bank_size(self) -> int:
        """Documents in the bank."""
        return len(self._bank)

    def example(self, split: str, index: int) -> EmojiExample:
        """Document `index` of a split, counted from 0; the bank ends, the others go on for ever.

        Raises `IndexError` outside.
        """
        if split not in SPLITS or index < 0 or (split == "bank" and index >= self.bank_size):
            raise IndexError(f"emoji has no document {index} in {split!r}")
        rng = random.Random(f"emoji {self.seed} {split} {index}")
        if split == "bank":
            thing, style, size = self._bank[index]
            kind = "memory" if style in thing.held_out else "thing"
            scene = scene_of_split(split, lambda: single(rng, thing, style, size))
        else:
            kind, scene = self._mixture(rng, split, index)
        return self.document(f"{split}-{index}", kind, scene)

    def document(self, key: str, kind: str, scene: EmojiScene) -> EmojiExample:
        """A scene as a document."""
        styles = {placed.style for placed in scene.things}
        artists, licences = zip(*(self.catalogue.artists[s] for s in styles), strict=True)
        return EmojiExample(
            key,
            kind,
            emoji_caption(scene),
            draw(scene, self.catalogue, self.size),
            scene,
            "; ".join(sorted(artists)),
            " AND ".join(sorted(licences)),
        )

    def _mixture(self, rng: random.Random, split: str, index: int) -> tuple[str, EmojiScene]:
        """Things in turn, so that each is shown as often as any other; in a pair, with another."""
        things = self.catalogue.trained
        thing = things[index % len(things)]
        if (index + index // len(things)) % 5 >= 5 - _PAIRS:
            return "pair", scene_of_split(split, lambda: self._pair(rng, thing))
        return "thing", scene_of_split(
            split, lambda: single(rng, thing, pick(rng, thing.shown), pick(rng, _SIZES))
        )

    def _pair(self, rng: random.Random, thing: Thing) -> EmojiScene:
        other = thing
        while other is thing or apart(thing, other):
            other = pick(rng, self.catalogue.trained)
        both = [(one, pick(rng, one.shown)) for one in (thing, other)]
        return pair(rng, both if rng.random() < 0.5 else both[::-1])


def scene_of_split(split: str, make: Callable[[], EmojiScene]) -> EmojiScene:
    """Draw until a scene belongs to the split: so no document of the bank repeats a scene of
    training, of validation or of a prompt, whether or not its caption says the style."""
    while True:
        scene = make()
        told = tuple(dataclasses.replace(placed, tells_style=True) for placed in scene.things)
        text = dataclasses.replace(scene, things=told).to_json()
        if _HOMES[looks.number(text) % len(_HOMES)] == split:
            return scene


def single(rng: random.Random, thing: Thing, style: str, size: str) -> EmojiScene:
    """A thing at any place on any ground."""
    place = integer(rng, len(PLACES))
    placed = Placed(thing.noun, style, place, size, rng.random() < _TOLD)
    return EmojiScene(pick(rng, _GROUNDS), (placed,))


def pair(rng: random.Random, both: list[tuple[Thing, str]]) -> EmojiScene:
    """Two small things, each in its style, that do not overlap, on any ground."""
    while True:
        things = tuple(
            Placed(thing.noun, style, integer(rng, len(PLACES)), "small", rng.random() < _TOLD)
            for thing, style in both
        )
        if not things[0].overlaps(things[1]):
            return EmojiScene(pick(rng, _GROUNDS), things)
