"""Scene -> pixels."""

import numpy as np

from cm3jax.emoji.grounds import ground
from cm3jax.emoji.looks import GRID, EmojiCatalogue
from cm3jax.emoji.scene import EmojiScene
from cm3jax.shapes import UInt8


def draw(scene: EmojiScene, catalogue: EmojiCatalogue, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The image of a scene; `KeyError` for a thing or style that the catalogue does not have."""
    picture = ground(scene.ground, size).copy()
    for placed, thing in zip(scene.things, scene.known(catalogue), strict=True):
        sprite = catalogue.sprites[placed.size][thing.look(placed.style)]
        area = window(placed.corner, len(sprite), size)
        picture[area] = lay_over(sprite, picture[area])
    return picture


def window(corner: tuple[int, int], side: int, size: int) -> tuple[slice, slice]:
    """The pixels of a thing of `side` pixels whose upper left unit is given."""
    top, left = (units * size // GRID for units in corner)
    return slice(top, top + side), slice(left, left + side)


def lay_over(
    sprites: UInt8[np.ndarray, "*M Y X 4"], under: UInt8[np.ndarray, "Y X 3"]
) -> UInt8[np.ndarray, "*M Y X 3"]:
    """Sprites on a piece of ground, each by itself, in integers: the same on every machine."""
    opacity = sprites[..., 3:].astype(np.int32)
    mixed = sprites[..., :3] * opacity + under * (255 - opacity)
    return ((mixed + 127) // 255).astype(np.uint8)
