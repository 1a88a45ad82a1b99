"""Identification: which of many candidates an image is nearest to, in pixels."""

import numpy as np

from cm3jax.shapes import Float, Int, UInt8

_SIDE = 16
"""Cells along one side, whose mean colours are compared."""
_AT_ONCE = 4096


def cells(pictures: UInt8[np.ndarray, "B Y X 3"]) -> Float[np.ndarray, "B D"]:
    """The mean colours of 16 x 16 cells of square images, from 0 to 1; smaller ones whole."""
    count, side = pictures.shape[:2]
    grid = np.gcd(side, _SIDE)
    parts = pictures.reshape(count, grid, side // grid, grid, side // grid, 3)
    return (parts.mean((2, 4), dtype=np.float32) / 255.0).reshape(count, -1)


def nearest_pictures(
    pictures: UInt8[np.ndarray, "B Y X 3"], candidates: Float[np.ndarray, "M D"]
) -> Int[np.ndarray, " B"]:
    """For each image the candidate (its `cells`) at the least squared distance; the first of
    equals."""
    asked, best = cells(pictures), np.full(len(pictures), np.inf, np.float32)
    places = np.zeros(len(pictures), np.int64)
    for start in range(0, len(candidates), _AT_ONCE):
        part = candidates[start : start + _AT_ONCE]
        # The image's own square is the same for all candidates.
        distances = (part**2).sum(1) - 2.0 * asked @ part.T
        here = distances.argmin(1)
        least = distances[np.arange(len(asked)), here]
        places = np.where(least < best, start + here, places)
        best = np.minimum(best, least)
    return places
