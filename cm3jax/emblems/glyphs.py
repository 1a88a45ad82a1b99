"""Bitmaps of what fits into one 8x8 cell: shapes, letters and parts of a palm."""

import numpy as np

from cm3jax.shapes import Bool

CELL = 8
"""Pixels along one side of a cell of a 32-pixel image."""

_LARGE = """
.####. ###### ..##.. ..##.. ..##.. .####.
###### ###### ..##.. ..##.. .####. ##..##
###### ###### .####. ###### ###### #....#
###### ###### .####. ###### ###### #....#
###### ###### ###### ..##.. .####. ##..##
.####. ###### ###### ..##.. ..##.. .####.
"""

# Five pixels wide, because a cross and a diamond of four pixels would both be a circle.
_SMALL = """
.##.. ####. ..#.. ..#.. ..#.. .##..
####. ####. .###. ..#.. .###. #..#.
####. ####. .###. ##### ##### #..#.
.##.. ####. ##### ..#.. .###. .##..
..... ..... ..... ..#.. ..#.. .....
"""

_LETTERS = """
.###. ####. .###. ####. ##### ##### .###. #...# .###. ..### #...# #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.##
#...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.#
##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.#
#...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...#
#...# ####. .###. ####. ##### #.... .#### #...# .###. .##.. #...# ##### #...#

#...# .###. ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
#.#.# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
#..## #...# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
#...# #...# #.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#...
#...# #...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
#...# .###. #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####
"""

_FINGERS = """
........ ........ ..####.. .##..##.
........ ........ ..####.. .##..##.
...##... ..#..#.. ..####.. .##..##.
..####.. .##..##. ..####.. .##..##.
..####.. .##..##. ..####.. .##..##.
..####.. .##..##. ..####.. .##..##.
..####.. .##..##. ..####.. .##..##.
..####.. .##..##. ..####.. .##..##.
"""


def _bitmaps(block: str, names: str, top: int, left: int) -> dict[str, Bool[np.ndarray, "8 8"]]:
    """Cut lines of side-by-side bitmaps apart, and place each in a cell at (top, left)."""
    cells: dict[str, np.ndarray] = {}
    words = names.split()
    for lines in block.strip("\n").split("\n\n"):
        for column in zip(*(line.split(" ") for line in lines.split("\n")), strict=True):
            cell = np.zeros((CELL, CELL), bool)
            bits = np.array([[mark == "#" for mark in row] for row in column])
            cell[top : top + bits.shape[0], left : left + bits.shape[1]] = bits
            cells[words[len(cells)]] = cell
    return cells


_SHAPES = "circle square triangle cross diamond ring"
SHAPES = {
    "large": _bitmaps(_LARGE, _SHAPES, top=1, left=1),
    "small": _bitmaps(_SMALL, _SHAPES, top=2, left=2),
}
"""Bitmap of each shape by size; every one leaves a margin in its cell."""

LETTERS = _bitmaps(_LETTERS, " ".join("abcdefghijklmnopqrstuvwxyz"), top=0, left=1)
"""Bitmap of each letter."""

FINGERS = _bitmaps(_FINGERS, "tip tips finger fingers", top=0, left=0)
"""One or two fingertips, and one or two fingers below them."""
