"""What an image shows, read from nothing but its pixels.

Each cell is matched with the nearest patch of the alphabet, and the patches are read as a scene;
no list of emblems, looks or captions is consulted. A guessed emblem look is right with chance
1 / QUARTERS ** 4 = 1.2e-8, far below 0.001.
"""

import dataclasses
import functools

import numpy as np

from cm3jax.emblems.draw import SIZE, patch_numbers
from cm3jax.emblems.glyphs import CELL
from cm3jax.emblems.patches import PATCHES, PIXELS, Patch
from cm3jax.emblems.scene import CELLS, FINGERS, GRID, LONGEST_WORD, Emblem, Scene, Shape
from cm3jax.shapes import Float, Int, UInt8

UNREADABLE = 32.0
"""A cell farther than this from every patch (root mean square over its values of 0 to 255) is
unreadable. Noise of standard deviation 12 stays below 16; random pixels are above 60."""

_CHUNK = 128  # images matched in one matrix product that still fits the processor's cache


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the reader made of one image: a scene (as `Scene.seen`), or why there is none."""

    scene: Scene | None
    problem: str = ""
    distance: float = 0.0
    """Distance of the worst cell to its patch: root mean square over values of 0 to 255."""


def read_scene(image: UInt8[np.ndarray, "S S 3"]) -> Reading:
    """The scene in an image whose side is a multiple of 32."""
    return read_batch(image[None])[0]


def read_batch(images: UInt8[np.ndarray, "B S S 3"]) -> list[Reading]:
    """`read_scene` of many images at once."""
    readings = []
    for start in range(0, len(images), _CHUNK):
        patches, distances = nearest_patches(images[start : start + _CHUNK])
        readings += [_reading(*both) for both in zip(patches, distances, strict=True)]
    return readings


def nearest_patches(
    images: UInt8[np.ndarray, "B S S 3"],
) -> tuple[Int[np.ndarray, "B 16"], Float[np.ndarray, "B 16"]]:
    """The nearest patch of each cell, row-major, and its root mean square distance."""
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[1] % SIZE:
        raise ValueError(f"expected images [B, S, S, 3], S a multiple of {SIZE}: {images.shape}")
    batch, zoom = len(images), images.shape[1] // SIZE
    pixels = images.astype(np.float32)
    if zoom > 1:
        pixels = pixels.reshape(batch, SIZE, zoom, SIZE, zoom, 3).mean((2, 4))
    cells = pixels.reshape(batch, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(batch, GRID * GRID, -1)
    templates, lengths = _templates()
    squared = lengths - 2 * cells @ templates.T + np.square(cells).sum(-1, keepdims=True)
    return squared.argmin(-1), np.sqrt(squared.min(-1).clip(0) / templates.shape[1])


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    flat = PIXELS.reshape(len(PIXELS), -1).astype(np.float32)
    return flat, np.square(flat).sum(-1)


def _reading(numbers: np.ndarray, distances: np.ndarray) -> Reading:
    distance = float(distances.max())
    if distance > UNREADABLE:
        where = " ".join(CELLS[i] for i in np.flatnonzero(distances > UNREADABLE))
        return Reading(None, f"nothing that can be read at {where}", distance)
    scene = _scene([PATCHES[number] for number in numbers])
    if scene is None or not np.array_equal(patch_numbers(scene), numbers):
        return Reading(None, "its cells do not make one scene", distance)
    return Reading(scene, distance=distance)


def _scene(cells: list[Patch]) -> Scene | None:
    """The only scene that could have these patches; it may yet not have them."""
    backgrounds = {cell.background for cell in cells if cell.background is not None}
    if len(backgrounds) != 1:
        return None
    background = backgrounds.pop()
    parts = {cell.part for cell in cells}
    if "palm" in parts:
        return _palm(background, cells)
    if "letter" in parts:
        word = "".join(cell.letter for cell in cells)
        return Scene(background, word=word) if len(word) <= LONGEST_WORD else None
    emblems = _emblems(cells)
    if emblems is None:
        return None
    shapes = (
        Shape(i, cell.part, cell.colour, cell.size) for i, cell in enumerate(cells) if cell.size
    )
    return Scene(background, emblems, tuple(shapes))


def _palm(background: str, cells: list[Patch]) -> Scene | None:
    fingers = sum({"finger": 1, "fingers": 2}.get(cell.part, 0) for cell in cells)
    return Scene(background, fingers=fingers) if fingers in FINGERS else None


def _emblems(cells: list[Patch]) -> tuple[Emblem, ...] | None:
    """Blocks of 2 x 2 quarters; the first free one, row-major, must be an upper left one."""
    quarters = {i for i, cell in enumerate(cells) if cell.part == "quarter"}
    emblems = []
    while quarters:
        row, column = divmod(min(quarters), GRID)
        if row == GRID - 1 or column == GRID - 1:
            return None
        emblem = Emblem(3 * row + column)
        if not quarters.issuperset(emblem.cells):
            return None
        first, second, third, last = (cells[i].quarter for i in emblem.cells)
        emblems.append(dataclasses.replace(emblem, look=(first, second, third, last)))
        quarters.difference_update(emblem.cells)
    return tuple(emblems)
