"""The alphabet of images: every distinct 8x8 patch, and what it means.

All that an emblems image can show is one of these patches in each cell, aligned and without
anti-aliasing, so an image tokenizer with 1,024 codes can learn it without loss.
"""

import dataclasses

import numpy as np

from cm3jax.emblems.glyphs import CELL, FINGERS, LETTERS, SHAPES
from cm3jax.emblems.palette import BACKGROUNDS, COLOURS, INK, RGB, SKIN
from cm3jax.shapes import UInt8


@dataclasses.dataclass(frozen=True)
class Patch:
    """What one patch means. Patches without a background fill their cell."""

    part: str
    """`empty`, `quarter`, `letter`, a part of a palm (`tip` … `palm`) or the name of a shape."""
    background: str | None = None
    colour: str = ""
    size: str = ""
    letter: str = ""
    quarter: int = -1
    """The pattern's number in an emblem's look."""


def _stamp(bitmap: np.ndarray, ink: RGB, ground: RGB) -> np.ndarray:
    return np.where(bitmap[..., None], np.array(ink, np.uint8), np.array(ground, np.uint8))


def _quarter_patterns() -> list[np.ndarray]:
    """6 plain patterns, then 3 (halves above each other, side by side, a dot) of 30 pairs."""
    row, column = np.mgrid[:CELL, :CELL]
    inner = range(CELL // 4, CELL - CELL // 4)
    masks = (row >= CELL // 2, column >= CELL // 2, np.isin(row, inner) & np.isin(column, inner))
    colours = list(COLOURS.values())
    nothing = np.zeros((CELL, CELL), bool)
    plain = [_stamp(nothing, colour, colour) for colour in colours]
    pairs = [(a, b) for a in colours for b in colours if a != b]
    return plain + [_stamp(mask, ink, ground) for mask in masks for ground, ink in pairs]


def _alphabet() -> dict[Patch, np.ndarray]:
    nothing, full = np.zeros((CELL, CELL), bool), np.ones((CELL, CELL), bool)
    patches = {Patch("quarter", quarter=i): pixels for i, pixels in enumerate(_quarter_patterns())}
    patches[Patch("palm")] = _stamp(full, SKIN, SKIN)
    for background, ground in BACKGROUNDS.items():
        patches[Patch("empty", background)] = _stamp(nothing, ground, ground)
        for size, bitmaps in SHAPES.items():
            for shape, bitmap in bitmaps.items():
                for colour, ink in COLOURS.items():
                    patches[Patch(shape, background, colour, size)] = _stamp(bitmap, ink, ground)
        for letter, bitmap in LETTERS.items():
            patch = Patch("letter", background, letter=letter)
            patches[patch] = _stamp(bitmap, BACKGROUNDS[INK[background]], ground)
        for part, bitmap in FINGERS.items():
            patches[Patch(part, background)] = _stamp(bitmap, SKIN, ground)
    return patches


_ALPHABET = _alphabet()

PATCHES: tuple[Patch, ...] = tuple(_ALPHABET)
"""What each patch means, by its number."""

PIXELS: UInt8[np.ndarray, "patches 8 8 3"] = np.stack(list(_ALPHABET.values()))
"""What each patch looks like, by its number."""

NUMBER: dict[Patch, int] = {patch: number for number, patch in enumerate(PATCHES)}
"""The number of each patch."""

QUARTERS = sum(patch.part == "quarter" for patch in PATCHES)
"""Patterns that a quarter of an emblem can have; an emblem has QUARTERS ** 4 possible looks."""
