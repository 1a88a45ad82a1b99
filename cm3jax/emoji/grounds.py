"""The grounds that things are drawn on: ten images, each one colour, a gradient or a texture."""

import functools
from collections.abc import Callable

import numpy as np

from cm3jax.shapes import Float, UInt8

GROUNDS = {
    "white": "on white",
    "black": "on black",
    "pink": "on pink",
    "grass": "on grass",
    "sand": "on sand",
    "moon": "on the moon",
    "sky": "in the sky",
    "sea": "in the sea",
    "night": "at night",
    "sunset": "at sunset",
}
"""What captions say of each."""

_CRATERS = (
    (10, 12, 6),
    (44, 8, 4),
    (52, 30, 7),
    (22, 34, 4),
    (12, 52, 5),
    (38, 54, 6),
    (34, 22, 2),
)
_STARS = ((6, 9), (21, 5), (41, 11), (57, 4), (14, 27), (51, 24), (4, 44), (30, 58), (59, 50))


@functools.lru_cache(maxsize=64)
def ground(name: str, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """A ground at `size` pixels a side; `KeyError` for another name. Not to be written to."""
    row, column = (np.mgrid[:size, :size] + 0.5) * 64 / size
    pixels = np.broadcast_to(_DRAWN[name](row, column), (size, size, 3))
    pixels = pixels.round().clip(0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


Shades = Float[np.ndarray, "S S 3"]
_Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Colours, float, of pixels by their row and column on a side of 64."""


def _plain(*colour: int) -> _Pattern:
    return lambda row, column: np.asarray(colour, float)


def _gradient(*colours: tuple[int, int, int]) -> _Pattern:
    """From the first colour at the top to the last one at the bottom, in steps of four pixels."""

    def shades(row: np.ndarray, column: np.ndarray) -> Shades:
        stops = np.linspace(0, 15, len(colours))
        step = row // 4
        return np.stack([np.interp(step, stops, part) for part in np.array(colours).T], axis=-1)

    return shades


def _texture(base: tuple[int, int, int], mark: tuple[int, int, int], where: _Pattern) -> _Pattern:
    def shades(row: np.ndarray, column: np.ndarray) -> Shades:
        return np.where(where(row, column)[..., None], np.array(mark, float), np.array(base, float))

    return shades


def _craters(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    spots = [(row - y) ** 2 + (column - x) ** 2 < r * r for x, y, r in _CRATERS]
    return np.any(spots, axis=0)


def _stars(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.any([np.hypot(row - y, column - x) < 0.9 for x, y in _STARS], axis=0)


def _blades(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return (column % 4 < 1) & ((row + 4 * (column // 4 % 3)) % 8 < 4)


def _grains(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return ((row // 1 + 3 * (column // 1)) % 8 < 1) & (row % 4 < 1)


def _waves(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.abs(row % 8 - 4 - 1.5 * np.sin(column * np.pi / 8)) < 0.8


_DRAWN = {
    "white": _plain(250, 250, 250),
    "black": _plain(20, 20, 26),
    "pink": _plain(244, 194, 208),
    "grass": _texture((118, 186, 96), (92, 160, 74), _blades),
    "sand": _texture((222, 198, 150), (196, 168, 118), _grains),
    "moon": _texture((162, 162, 166), (128, 128, 134), _craters),
    "sky": _gradient((120, 180, 240), (215, 236, 252)),
    "sea": _texture((58, 130, 190), (112, 176, 220), _waves),
    "night": _texture((26, 30, 70), (240, 236, 200), _stars),
    "sunset": _gradient((88, 60, 130), (230, 110, 90), (250, 200, 110)),
}
