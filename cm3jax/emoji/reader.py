"""What an image shows, read from nothing but its pixels: the nearest of all images at a place
and size.

Each candidate is laid on the ground of the image and compared with the image there.
All images of all sets are candidates, more than 10,000, also of names that no caption uses. A
reader that knows where to look guesses right with a chance of one in the number of things.
"""

import dataclasses
import functools

import numpy as np

from cm3jax.emblems.scene import PLACES
from cm3jax.emoji.draw import window
from cm3jax.emoji.grounds import GROUNDS, ground
from cm3jax.emoji.looks import GRID, SIDES, EmojiCatalogue
from cm3jax.emoji.scene import EmojiScene, Placed
from cm3jax.shapes import Float, Int, UInt8

NOTHING = -1
"""In place of an image's number: there is nothing."""
_CHUNK = 1024  # candidates compared at once
_NEAR = 24
"""A pixel whose values are all closer than this to a ground's may be that ground."""


@dataclasses.dataclass(frozen=True)
class PlaceReading:
    """What the reader made of one place of an image."""

    place: int
    """A number in `PLACES`."""
    size: str
    """A key of `SIDES`."""
    look: int
    """The nearest image's number in the catalogue; `NOTHING` if bare ground is nearer."""
    distance: float
    """Root mean square over the thing's pixels, of values of 0 to 255."""


@dataclasses.dataclass(frozen=True)
class EmojiReader:
    """Reads images of a catalogue's things."""

    catalogue: EmojiCatalogue
    size: int
    """Pixels along one side of the images."""

    @property
    def candidates(self) -> int:
        """Images that each place is compared with."""
        return len(self.catalogue.classes)

    @functools.cached_property
    def chance(self) -> float:
        """The share that guessing among the things gets right."""
        return 1 / len(np.unique(self.catalogue.classes))

    def grounds(self, images: UInt8[np.ndarray, "B S S 3"]) -> list[str]:
        """The ground of each image: the one that most of its pixels are near to."""
        names = tuple(GROUNDS)
        known = np.stack([ground(name, self.size) for name in names]).astype(np.int32)
        errors = (np.abs(image.astype(np.int32) - known).max(-1) for image in images)
        return [names[int((error < _NEAR).sum((1, 2)).argmax())] for error in errors]

    def nearest(
        self, seen: UInt8[np.ndarray, "B Y X 3"], under: UInt8[np.ndarray, "B Y X 3"], size: str
    ) -> tuple[Int[np.ndarray, " B"], Float[np.ndarray, " B"]]:
        """The nearest image to each cut-out of a size's side, given the ground under it.

        Returns numbers in the catalogue, `NOTHING` where bare ground is nearer, and root mean
        square distances over values of 0 to 255.
        """
        rest = (seen.astype(np.float32) - under).reshape(len(seen), -1)
        bottom = under.astype(np.float32).reshape(len(seen), -1)
        bare = np.square(rest).sum(1)
        least, best = bare.copy(), np.full(len(seen), NOTHING)
        for start in range(0, self.candidates, _CHUNK):
            squared = bare[:, None] + self._added(size, start, rest, bottom)
            closest = squared.argmin(1)
            found = squared[np.arange(len(seen)), closest]
            best = np.where(found < least, start + closest, best)
            least = np.minimum(found, least)
        return best, np.sqrt(least.clip(0) / rest.shape[1])

    def _added(
        self, size: str, start: int, rest: Float[np.ndarray, "B D"], under: Float[np.ndarray, "B D"]
    ) -> Float[np.ndarray, "B M"]:
        """What laying each of some candidates on the ground adds to the squared distance of the
        bare ground: |o (s - u)|^2 - 2 rest . o (s - u), for opacity o, sprite s and ground u."""
        sprites = self.catalogue.sprites[size][start : start + _CHUNK].astype(np.float32)
        opacity = np.broadcast_to(sprites[..., 3:] / 255, (*sprites.shape[:-1], 3))
        opacity = opacity.reshape(len(sprites), -1)
        ink = opacity * sprites[..., :3].reshape(len(sprites), -1)
        own = np.square(ink).sum(1) - 2 * (rest @ ink.T - (rest * under) @ opacity.T)
        return own - 2 * under @ (opacity * ink).T + np.square(under) @ np.square(opacity).T

    def shows(
        self, images: UInt8[np.ndarray, "B S S 3"], scenes: list[EmojiScene], styles: bool = False
    ) -> list[bool]:
        """Whether each image shows the things of its own scene where it has them, on its ground.

        A thing in whatever style will do, unless `styles` asks for the scene's.
        """
        right = [found == s.ground for found, s in zip(self.grounds(images), scenes, strict=True)]
        for size in SIDES:
            asked = [
                (row, placed, thing.look(placed.style))
                for row, scene in enumerate(scenes)
                for placed, thing in zip(scene.things, scene.known(self.catalogue), strict=True)
                if placed.size == size
            ]
            if asked:
                areas = [(row, self._area(placed)) for row, placed, _ in asked]
                seen = np.stack([images[row][area] for row, area in areas])
                under = np.stack(
                    [ground(scenes[row].ground, self.size)[area] for row, area in areas]
                )
                found, _ = self.nearest(seen, under, size)
                for (row, _, look), other in zip(asked, found.tolist(), strict=True):
                    right[row] &= self._same(look, other, styles)
        return right

    def _area(self, placed: Placed) -> tuple[slice, slice]:
        return window(placed.corner, SIDES[placed.size] * self.size // GRID, self.size)

    def _same(self, wanted: int, found: int, styles: bool) -> bool:
        classes, owners = self.catalogue.classes, self.catalogue.styles
        return (
            found != NOTHING
            and bool(classes[wanted] == classes[found])
            and (not styles or owners[wanted] == owners[found])
        )

    def read(self, image: UInt8[np.ndarray, "S S 3"]) -> PlaceReading:
        """The thing of an image of one thing, wherever it is and however large: all images are
        tried at all places and sizes, and the one with the least error in the whole image wins.
        """
        (name,) = self.grounds(image[None])
        whole = ground(name, self.size)
        errors = np.square(image.astype(np.float32) - whole)
        found: list[tuple[float, PlaceReading]] = []
        for size in SIDES:
            areas = [self._area(Placed("", "", place, size)) for place in range(len(PLACES))]
            seen, under = (np.stack([part[area] for area in areas]) for part in (image, whole))
            looks, distances = self.nearest(seen, under, size)
            for place, area in enumerate(areas):
                reading = PlaceReading(place, size, int(looks[place]), float(distances[place]))
                covered = errors[area]
                left = errors.sum() - covered.sum() + covered.size * reading.distance**2
                found.append((float(left), reading))
        return min(found, key=lambda pair: pair[0])[1]
