"""Scene graph -> patches -> pixels."""

import numpy as np

from cm3jax.emblems.glyphs import CELL
from cm3jax.emblems.patches import NUMBER, PIXELS, Patch
from cm3jax.emblems.scene import GRID, Scene
from cm3jax.shapes import Int, UInt8

SIZE = GRID * CELL
"""Pixels along one side of the smallest image; others are multiples of it."""

# Fingers above each column of a palm.
_FINGERS = {2: (0, 1, 1, 0), 3: (1, 1, 1, 0), 4: (1, 1, 1, 1), 5: (1, 2, 1, 1), 6: (1, 2, 2, 1)}
_FIRST_LETTER = GRID  # words start at cell a2


def patch_numbers(scene: Scene) -> Int[np.ndarray, "16"]:
    """The patch in each cell, row-major, as numbers in `patches.PATCHES`.

    Raises `KeyError` for a word, colour or number of fingers that the dataset does not know, and
    `ValueError` for an emblem without a look.
    """
    background = scene.background
    cells = [NUMBER[Patch("empty", background)]] * (GRID * GRID)
    if scene.fingers is not None:
        cells = _palm(background, scene.fingers)
    for cell, letter in enumerate(scene.word or "", _FIRST_LETTER):
        cells[cell] = NUMBER[Patch("letter", background, letter=letter)]
    for shape in scene.shapes:
        cells[shape.cell] = NUMBER[Patch(shape.shape, background, shape.colour, shape.size)]
    for emblem in scene.emblems:
        if emblem.look is None:
            raise ValueError(f"the {emblem.name} emblem has no look to draw")
        for cell, quarter in zip(emblem.cells, emblem.look, strict=True):
            cells[cell] = NUMBER[Patch("quarter", quarter=quarter)]
    return np.array(cells, np.int32)


def _palm(background: str, fingers: int) -> list[int]:
    """Fingertips, fingers, the palm and the wrist: one row of cells each."""
    kinds = (("empty", "tip", "tips"), ("empty", "finger", "fingers"))
    rows = [[parts[count] for count in _FINGERS[fingers]] for parts in kinds]
    rows += [["palm"] * GRID, ["empty", "palm", "palm", "empty"]]
    return [
        NUMBER[Patch(part, None if part == "palm" else background)] for row in rows for part in row
    ]


def draw_scene(scene: Scene, size: int = SIZE) -> UInt8[np.ndarray, "S S 3"]:
    """The image of a scene whose emblems have looks; `size` is a multiple of 32."""
    if size % SIZE:
        raise ValueError(f"size {size} is not a multiple of {SIZE}")
    cells = PIXELS[patch_numbers(scene)].reshape(GRID, GRID, CELL, CELL, 3)
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(SIZE, SIZE, 3)
    zoom = size // SIZE
    return picture if zoom == 1 else picture.repeat(zoom, 0).repeat(zoom, 1)
