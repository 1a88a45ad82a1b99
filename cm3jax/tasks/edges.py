"""Canny edges and scribbles, computed from an image's pixels."""

import numpy as np

from cm3jax.shapes import Bool, Float, UInt8

_SMOOTH = np.array([1, 4, 6, 4, 1]) / 16  # a Gaussian of standard deviation 1
_LOW, _HIGH = 40.0, 100.0
"""Thresholds of the gradient (Sobel, of values 0 to 255), for going on and for beginning a line."""


def canny(picture: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Edges as white lines of one pixel on black (Canny 1986)."""
    return _white(_edges(picture))


def scribble(picture: UInt8[np.ndarray, "Y X 3"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Edges of an image at half its size, as white strokes on black: thick, and without detail."""
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    halves = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    strokes = _edges(halves.astype(np.uint8)).repeat(2, 0).repeat(2, 1)
    below, right = (picture.shape[i] - strokes.shape[i] for i in (0, 1))
    return _white(np.pad(_grown(strokes), ((0, below), (0, right))))


def _white(lines: Bool[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "Y X 3"]:
    return np.where(lines[..., None], np.uint8(255), np.uint8(0)).repeat(3, -1)


def _edges(picture: UInt8[np.ndarray, "Y X 3"]) -> Bool[np.ndarray, "Y X"]:
    grey = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    smooth = _along(_along(grey, _SMOOTH, 0), _SMOOTH, 1)
    step, ramp = np.array([1, 0, -1]), np.array([1, 2, 1])
    down = _along(_along(smooth, step, 0), ramp, 1)
    right = _along(_along(smooth, step, 1), ramp, 0)
    strength = np.hypot(down, right)
    thin = _ridge(strength, down, right)
    line = thin & (strength >= _HIGH)
    while True:  # a weak pixel belongs to a line if one beside it does
        grown = _grown(line) & thin & (strength >= _LOW)
        if (grown == line).all():
            return line
        line = grown


def _along(
    values: Float[np.ndarray, "Y X"], weights: np.ndarray, axis: int
) -> Float[np.ndarray, "Y X"]:
    """A convolution along one axis, the border repeated."""
    reach = len(weights) // 2
    pads = [(reach, reach) if i == axis else (0, 0) for i in (0, 1)]
    padded = np.pad(values, pads, mode="edge")
    size = values.shape[axis]
    parts = (
        weight * np.take(padded, range(k, k + size), axis) for k, weight in enumerate(weights[::-1])
    )
    return sum(parts)


def _ridge(
    strength: Float[np.ndarray, "Y X"],
    down: Float[np.ndarray, "Y X"],
    right: Float[np.ndarray, "Y X"],
) -> Bool[np.ndarray, "Y X"]:
    """Pixels that are strongest across their edge, in one of four directions."""
    sector = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(strength, 1)
    height, width = strength.shape
    ridge = np.zeros(strength.shape, bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        # Of two equal ones the second, so that a line is one pixel wide.
        ridge |= (sector == number) & (strength > ahead) & (strength >= behind)
    return ridge & (strength > 0)


def _grown(lines: Bool[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
    """The lines and all pixels beside them."""
    padded = np.pad(lines, 1)
    height, width = lines.shape
    shifts = [(y, x) for y in range(3) for x in range(3)]
    return np.any([padded[y : y + height, x : x + width] for y, x in shifts], axis=0)
