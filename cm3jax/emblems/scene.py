"""The scene graph: what an image shows, as values that compare and hash.

An image is a grid of 4 x 4 cells, named by column and row (`a1` top left, `d4` bottom right) and
numbered row-major from 0. A shape, a letter or a part of a palm fills one cell; an emblem fills
2 x 2 cells, at one of nine places.
"""

import dataclasses
import json

GRID = 4
CELLS = tuple(f"{'abcd'[cell % GRID]}{cell // GRID + 1}" for cell in range(GRID * GRID))
"""Names of the cells, row-major."""

PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
"""Names of the nine places of an emblem, row-major by its upper left cell."""

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = ("small", "large")
LONGEST_WORD = 8
"""Letters at most: two rows of cells."""
FINGERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
"""How many fingers a palm may have, in words."""

Look = tuple[int, int, int, int]
"""The patterns (`patches.QUARTERS`) of an emblem's quarters, row-major."""


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """One shape in one cell."""

    cell: int
    shape: str
    colour: str
    size: str


@dataclasses.dataclass(frozen=True, order=True)
class Emblem:
    """One emblem: a caption knows its name, an image its look, the ground truth both."""

    place: int
    name: str | None = None
    look: Look | None = None

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """The four cells that it covers, row-major."""
        first = self.place // 3 * GRID + self.place % 3
        return (first, first + 1, first + GRID, first + GRID + 1)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything in one image; equal scenes are equal images.

    Emblems and shapes are kept in row-major order, whatever order they are given in.
    """

    background: str
    emblems: tuple[Emblem, ...] = ()
    shapes: tuple[Shape, ...] = ()
    word: str | None = None
    fingers: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "emblems", tuple(sorted(self.emblems, key=lambda e: e.place)))
        object.__setattr__(self, "shapes", tuple(sorted(self.shapes)))

    def seen(self) -> "Scene":
        """The scene as an image shows it: emblems without names."""
        seen = tuple(dataclasses.replace(emblem, name=None) for emblem in self.emblems)
        return dataclasses.replace(self, emblems=seen)

    def told(self) -> "Scene":
        """The scene as a caption tells it: emblems without looks."""
        told = tuple(dataclasses.replace(emblem, look=None) for emblem in self.emblems)
        return dataclasses.replace(self, emblems=told)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its emblems, of those that have one."""
        return tuple(emblem.name for emblem in self.emblems if emblem.name is not None)

    @property
    def free_cells(self) -> tuple[int, ...]:
        """Cells without a shape or an emblem, row-major."""
        taken = {shape.cell for shape in self.shapes}
        taken.update(cell for emblem in self.emblems for cell in emblem.cells)
        return tuple(cell for cell in range(GRID * GRID) if cell not in taken)

    def overlaps(self) -> bool:
        """Whether two of its things claim the same cell, so that no image can show it."""
        claimed = len(self.shapes) + 4 * len(self.emblems)
        return len(self.free_cells) + claimed != GRID * GRID

    def to_json(self) -> str:
        """One line of JSON, from which `from_json` makes an equal scene."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """The scene that `to_json` wrote."""
        value = json.loads(text)
        for emblem in value["emblems"]:
            emblem["look"] = emblem["look"] and tuple(emblem["look"])
        value["emblems"] = tuple(Emblem(**emblem) for emblem in value["emblems"])
        value["shapes"] = tuple(Shape(**shape) for shape in value["shapes"])
        return cls(**value)
