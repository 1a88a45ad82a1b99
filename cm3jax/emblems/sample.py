"""Random scenes of every kind, and which split each of them belongs to."""

import bisect
import dataclasses
import random
import zlib
from collections.abc import Callable
from typing import TypeVar

from cm3jax.emblems.looks import MEMORY_ONLY, SYLLABLES, Catalogue, integer
from cm3jax.emblems.palette import BACKGROUNDS, COLOURS
from cm3jax.emblems.scene import FINGERS, LONGEST_WORD, PLACES, SHAPES, SIZES, Emblem, Scene, Shape
from cm3jax.emblems.wording import MAX_CLAUSES, Relation, caption, relations

_T = TypeVar("_T")
_BACKGROUNDS, _COLOURS = tuple(BACKGROUNDS), tuple(COLOURS)
_BUCKETS = ("prompts", "validation", "bank", "bank", "bank")  # of 16; the rest is training's


def home(text: str) -> str:
    """The one split in which a caption's scene may occur: a hash of the plain caption decides.

    So no document of the bank repeats a scene of training, of validation or of a prompt.
    """
    bucket = zlib.crc32(text.encode()) % 16
    return _BUCKETS[bucket] if bucket < len(_BUCKETS) else "train"


def at_home(split: str, draw: Callable[[], Scene]) -> Scene:
    """Draw until a scene belongs to the split."""
    while True:
        scene = draw()
        if home(caption(scene)) == split:
            return scene


def pick(rng: random.Random, values: tuple[_T, ...]) -> _T:
    """One of the values, uniformly."""
    return values[integer(rng, len(values))]


def frequent(rng: random.Random, emblems: Catalogue) -> int:
    """A training emblem by Zipf's law: the first ones are hundreds of times as frequent."""
    return MEMORY_ONLY + bisect.bisect_right(emblems.zipf, integer(rng, emblems.zipf[-1]))


def _shapes(rng: random.Random, free: tuple[int, ...], count: int) -> tuple[Shape, ...]:
    cells = list(free)
    return tuple(
        Shape(
            cell=cells.pop(integer(rng, len(cells))),
            shape=pick(rng, SHAPES),
            colour=pick(rng, _COLOURS),
            size=pick(rng, SIZES),
        )
        for _ in range(count)
    )


def plain_scene(rng: random.Random, most: int = 4) -> Scene:
    """1 to `most` shapes."""
    empty = Scene(pick(rng, _BACKGROUNDS))
    return dataclasses.replace(empty, shapes=_shapes(rng, empty.free_cells, 1 + integer(rng, most)))


def with_emblem(rng: random.Random, number: int, emblems: Catalogue) -> Scene:
    """One emblem and 0 to 2 further shapes."""
    background = pick(rng, _BACKGROUNDS)
    scene = Scene(background, (_emblem(number, integer(rng, len(PLACES)), emblems),))
    return dataclasses.replace(scene, shapes=_shapes(rng, scene.free_cells, integer(rng, 3)))


def with_pair(rng: random.Random, numbers: tuple[int, int], emblems: Catalogue) -> Scene:
    """Two emblems that do not overlap."""
    background = pick(rng, _BACKGROUNDS)
    while True:
        pair = tuple(_emblem(number, integer(rng, len(PLACES)), emblems) for number in numbers)
        scene = Scene(background, pair)
        if not scene.overlaps():
            return scene


def _emblem(number: int, place: int, emblems: Catalogue) -> Emblem:
    return Emblem(place, emblems.names[number], emblems.looks[number])


def memory_only(index: int) -> int:
    """The number of memory-only emblem `index`; after the last one comes the first again."""
    return index % MEMORY_ONLY


def word(rng: random.Random) -> Scene:
    """A made-up word of 1 to 8 letters."""
    letters = "".join(pick(rng, SYLLABLES) for _ in range(4))
    return Scene(pick(rng, _BACKGROUNDS), word=letters[: 1 + integer(rng, LONGEST_WORD)])


def palm(rng: random.Random) -> Scene:
    """A palm with 2 to 6 fingers."""
    return Scene(pick(rng, _BACKGROUNDS), fingers=pick(rng, tuple(FINGERS)))


def story(rng: random.Random) -> tuple[Scene, Scene, Scene]:
    """A shape that changes in one way, then in another."""
    while True:
        first = plain_scene(rng, most=1)
        second = _changed(rng, first)
        third = second and _changed(rng, second)
        if second and third:
            return first, second, third


def _changed(rng: random.Random, scene: Scene) -> Scene | None:
    """The scene with one field of its shape drawn again; None where the draw changes nothing."""
    new = plain_scene(rng, most=1).shapes[0]
    field = pick(rng, ("cell", "colour", "shape", "size"))
    shape = dataclasses.replace(scene.shapes[0], **{field: getattr(new, field)})
    return None if shape == scene.shapes[0] else dataclasses.replace(scene, shapes=(shape,))


def claims(rng: random.Random, scene: Scene) -> tuple[Relation, ...]:
    """Some true relations, as many as a caption may have clauses besides the shapes'."""
    remaining = list(relations(scene))
    limit = min(len(remaining), MAX_CLAUSES - len(scene.shapes))
    count = 1 + integer(rng, limit) if limit else 0
    return tuple(remaining.pop(integer(rng, len(remaining))) for _ in range(count))
