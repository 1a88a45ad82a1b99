"""What a picture shows, from its pixels alone: the nearest of all pictures at a place and size.

Each candidate is laid on the ground that the picture stands on and compared with the picture there.
All pictures of all sets are candidates, more than 10,000, also of names that no caption uses. A
reader that knows where to look guesses right with a chance of one in the number of things.
"""

import dataclasses
import functools

import numpy as np

from cm3jax.emblems.scene import PLACES
from cm3jax.emoji.draw import window
from cm3jax.emoji.grounds import GROUNDS, ground
from cm3jax.emoji.looks import GRID, SIDES, Catalogue
from cm3jax.emoji.scene import Placed, Scene
from cm3jax.shapes import Float, UInt8

NOTHING = -1
"""In place of a picture's number: nothing stands there."""
_NEAR = 24
"""A pixel whose values are all closer than this to a ground's may be that ground."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the reader made of one place of a picture."""

    place: int
    """A number in `PLACES`."""
    size: str
    """A key of `SIDES`."""
    look: int
    """The nearest picture's number in the catalogue; `NOTHING` if bare ground is nearer."""
    distance: float
    """Root mean square over the thing's pixels, of values of 0 to 255."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads pictures of a catalogue's things."""

    catalogue: Catalogue
    size: int
    """Pixels along one side of the pictures."""

    @property
    def candidates(self) -> int:
        """Pictures that each place is compared with."""
        return len(self.catalogue.classes)

    @functools.cached_property
    def chance(self) -> float:
        """The share that guessing among the things gets right."""
        return 1 / len(np.unique(self.catalogue.classes))

    def grounds(self, images: UInt8[np.ndarray, "B S S 3"]) -> list[str]:
        """The ground that each picture stands on: the one that most of its pixels are near to."""
        names = tuple(GROUNDS)
        known = np.stack([ground(name, self.size) for name in names]).astype(np.int32)
        errors = (np.abs(image.astype(np.int32) - known).max(-1) for image in images)
        return [names[int((error < _NEAR).sum((1, 2)).argmax())] for error in errors]

    def nearest(
        self, images: UInt8[np.ndarray, "B S S 3"], ground_name: str, place: int, size: str
    ) -> list[Reading]:
        """The nearest picture to what stands at a place (of `PLACES`) of pictures on one ground."""
        corner = Placed("", "", place, size).corner
        side = SIDES[size] * self.size // GRID
        area = window(corner, side, self.size)
        under = ground(ground_name, self.size)[area].astype(np.float32).reshape(-1)
        seen = images[(slice(None), *area)].astype(np.float32).reshape(len(images), -1)
        squared = self._squared(size, seen, under)
        bare = np.square(seen - under).sum(1)
        best = np.where(squared.min(1) < bare, squared.argmin(1), NOTHING)
        least = np.sqrt(np.minimum(squared.min(1), bare).clip(0) / seen.shape[1])
        found = zip(best.tolist(), least.tolist(), strict=True)
        return [Reading(place, size, look, distance) for look, distance in found]

    def _squared(
        self, size: str, seen: Float[np.ndarray, "B D"], under: Float[np.ndarray, " D"]
    ) -> Float[np.ndarray, "B M"]:
        """Squared distances to all candidates, each laid on what is under it."""
        squared = np.empty((len(seen), self.candidates), np.float32)
        rest = seen - under
        step = 2048  # candidates laid on the ground at once
        for start in range(0, self.candidates, step):
            sprites = self.catalogue.sprites[size][start : start + step].astype(np.float32)
            opacity = sprites[..., 3:] / 255
            laid = opacity * (sprites[..., :3] - under.reshape(*sprites.shape[1:3], 3))
            laid = laid.reshape(len(sprites), -1)
            lengths = np.square(laid).sum(1)
            squared[:, start : start + step] = lengths - 2 * rest @ laid.T
        return squared + np.square(rest).sum(1, keepdims=True)

    def shows(
        self, images: UInt8[np.ndarray, "B S S 3"], scenes: list[Scene], styles: bool = False
    ) -> list[bool]:
        """Whether each picture shows the things of its own scene where it has them, on its ground.

        A thing in whatever style will do, unless `styles` asks for the scene's.
        """
        right = [found == s.ground for found, s in zip(self.grounds(images), scenes, strict=True)]
        wanted: dict[tuple, list[tuple[int, int]]] = {}
        for row, scene in enumerate(scenes):
            for placed, thing in zip(scene.things, scene.known(self.catalogue), strict=True):
                look = dict(thing.looks)[placed.style]
                wanted.setdefault((scene.ground, placed.place, placed.size), []).append((row, look))
        for where, asked in wanted.items():
            rows = [row for row, _ in asked]
            for (row, look), reading in zip(asked, self.nearest(images[rows], *where), strict=True):
                right[row] &= self._same(look, reading.look, styles)
        return right

    def _same(self, wanted: int, found: int, styles: bool) -> bool:
        classes, owners = self.catalogue.classes, self.catalogue.styles
        return (
            found != NOTHING
            and bool(classes[wanted] == classes[found])
            and (not styles or owners[wanted] == owners[found])
        )

    def read(self, image: UInt8[np.ndarray, "S S 3"]) -> Reading:
        """The thing of a picture of one thing, wherever it is and however large: all pictures are
        tried at all places and sizes, and the one with the least error in the whole picture wins.
        """
        (name,) = self.grounds(image[None])
        errors = np.square(image.astype(np.float32) - ground(name, self.size))

        def error(reading: Reading) -> float:
            side = SIDES[reading.size] * self.size // GRID
            corner = Placed("", "", reading.place, reading.size).corner
            covered = errors[window(corner, side, self.size)]
            return float(errors.sum() - covered.sum() + covered.size * reading.distance**2)

        everywhere = [
            self.nearest(image[None], name, place, size)[0]
            for size in SIDES
            for place in range(len(PLACES))
        ]
        return min(everywhere, key=error)
