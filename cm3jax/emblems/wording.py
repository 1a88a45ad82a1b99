"""Scenes in words, and words back to scenes.

    a large red circle at b3 and a small blue square at d1 on sand
    on sand, a large red circle at b3 and a small blue square at d1, the circle is below the square
    the zomirak emblem at the top left with a small red circle at d4 on sky
    the zomirak emblem at the top left and the velunto emblem at the bottom right on white
    the word melo on sky  ·  a palm with four fingers on white

A caption determines its image completely, except for the looks of emblems that it names. A
clause is one thing or one relation; a caption has 1 to 12.
"""

import dataclasses
import re

from cm3jax.emblems.palette import BACKGROUNDS, COLOURS
from cm3jax.emblems.scene import (
    CELLS,
    FINGERS,
    GRID,
    LONGEST_WORD,
    PLACES,
    SHAPES,
    SIZES,
    Emblem,
    Scene,
    Shape,
)

MAX_CLAUSES = 12

RELATIONS = {
    "left of": lambda a, b: a.cell % GRID < b.cell % GRID,
    "right of": lambda a, b: a.cell % GRID > b.cell % GRID,
    "above": lambda a, b: a.cell // GRID < b.cell // GRID,
    "below": lambda a, b: a.cell // GRID > b.cell // GRID,
    "larger than": lambda a, b: (a.size, b.size) == ("large", "small"),
    "smaller than": lambda a, b: (a.size, b.size) == ("small", "large"),
}
"""What one shape can be to another, and when it is."""


@dataclasses.dataclass(frozen=True)
class Relation:
    """The claim that one shape is `relation` another."""

    subject: Shape
    relation: str
    object: Shape


def relations(scene: Scene) -> tuple[Relation, ...]:
    """Every true relation between two shapes of a scene, in a fixed order."""
    return tuple(
        Relation(a, name, b)
        for a in scene.shapes
        for b in scene.shapes
        for name, holds in RELATIONS.items()
        if a is not b and holds(a, b)
    )


def caption(scene: Scene, claims: tuple[Relation, ...] = (), background_first: bool = False) -> str:
    """The caption of a scene, followed by relations between its shapes."""
    things = _things(scene)
    text = (
        f"on {scene.background}, {things}"
        if background_first
        else f"{things} on {scene.background}"
    )
    return ", ".join([text, *(_claim(scene, claim) for claim in claims)])


def _things(scene: Scene) -> str:
    if scene.word is not None:
        return f"the word {scene.word}"
    if scene.fingers is not None:
        return f"a palm with {FINGERS[scene.fingers]} fingers"
    emblems = _listed([f"the {e.name} emblem at the {PLACES[e.place]}" for e in scene.emblems])
    shapes = _listed([describe_shape(shape) for shape in scene.shapes])
    return " with ".join(part for part in (emblems, shapes) if part)


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def describe_shape(shape: Shape) -> str:
    """A shape in full: "a large red circle at b3"."""
    return f"a {shape.size} {shape.colour} {shape.shape} at {CELLS[shape.cell]}"


def refer(scene: Scene, shape: Shape) -> str:
    """The shortest of three wordings that refers to only this shape of the scene."""
    short = (f"the {shape.shape}", f"the {shape.colour} {shape.shape}")
    unique = (text for text in short if len(_referents(scene, text)) == 1)
    return next(unique, f"the {shape.shape} at {CELLS[shape.cell]}")


def _claim(scene: Scene, claim: Relation) -> str:
    return f"{refer(scene, claim.subject)} is {claim.relation} {refer(scene, claim.object)}"


# ---- and back

_ANY_SHAPE = f"(?P<shape>{'|'.join(SHAPES)})"
_ANY_COLOUR = f"(?P<colour>{'|'.join(COLOURS)})"
_AT_CELL = f"at (?P<cell>{'|'.join(CELLS)})"
_SHAPE = re.compile(f"a (?P<size>{'|'.join(SIZES)}) {_ANY_COLOUR} {_ANY_SHAPE} {_AT_CELL}")
_EMBLEM = re.compile(f"the (?P<name>[a-z]+) emblem at the (?P<place>{'|'.join(PLACES)})")
_WORD = re.compile(f"the word (?P<word>[a-z]{{1,{LONGEST_WORD}}})")
_PALM = re.compile(f"a palm with (?P<fingers>{'|'.join(FINGERS.values())}) fingers")
_CLAIM = re.compile(f"(the .+) is ({'|'.join(RELATIONS)}) (the .+)")
_REFERENCE = re.compile(f"the (?:{_ANY_COLOUR} )?{_ANY_SHAPE}(?: {_AT_CELL})?")
_ON = re.compile(
    f"on (?P<first>{'|'.join(BACKGROUNDS)}), (?P<after>.+)|"
    f"(?P<before>.+) on (?P<last>{'|'.join(BACKGROUNDS)})"
)
_STEP = re.compile(
    f"it (?:moves to (?P<cell>{'|'.join(CELLS)})|turns {_ANY_COLOUR}|becomes a {_ANY_SHAPE}"
    f"|becomes (?P<size>{'|'.join(SIZES)}))"
)


def step(before: Shape, after: Shape) -> str:
    """What happened to the only shape of a story between two images."""
    if before.cell != after.cell:
        return f"it moves to {CELLS[after.cell]}"
    if before.colour != after.colour:
        return f"it turns {after.colour}"
    if before.shape != after.shape:
        return f"it becomes a {after.shape}"
    return f"it becomes {after.size}"


def caption_states(text: str, before: Scene | None = None) -> Scene | None:
    """The scene that a caption asserts, or None if it is not a caption or contradicts itself.

    Emblems have names and no looks, so compare with `Scene.told()`. Relations must hold, else the
    answer is None. `before` is the scene that a story's step ("it turns blue") starts from.
    """
    if change := _STEP.fullmatch(text):
        return _changed(before, change)
    head, *claims = re.split(", (?=the [^,]+ is )", text)
    found = _ON.fullmatch(head)
    if not found:
        return None
    scene = _scene(found["after"] or found["before"], found["first"] or found["last"])
    if scene is None or scene.overlaps():
        return None
    return scene if all(_holds(scene, claim) for claim in claims) else None


def _changed(before: Scene | None, change: re.Match) -> Scene | None:
    if before is None or len(before.shapes) != 1:
        return None
    values = {key: value for key, value in change.groupdict().items() if value}
    if "cell" in values:
        values["cell"] = CELLS.index(values["cell"])
    shape = dataclasses.replace(before.shapes[0], **values)
    return dataclasses.replace(before, shapes=(shape,))


def _scene(things: str, background: str) -> Scene | None:
    if word := _WORD.fullmatch(things):
        return Scene(background, word=word["word"])
    if palm := _PALM.fullmatch(things):
        fingers = {name: count for count, name in FINGERS.items()}
        return Scene(background, fingers=fingers[palm["fingers"]])
    emblems, shapes = [], []
    for thing in re.split(", | and | with ", things):
        if emblem := _EMBLEM.fullmatch(thing):
            emblems.append(Emblem(PLACES.index(emblem["place"]), emblem["name"]))
        elif shape := _SHAPE.fullmatch(thing):
            cell = CELLS.index(shape["cell"])
            shapes.append(Shape(cell, shape["shape"], shape["colour"], shape["size"]))
        else:
            return None
    return Scene(background, tuple(emblems), tuple(shapes))


def _referents(scene: Scene, text: str) -> list[Shape]:
    """Shapes of the scene that a reference fits."""
    found = _REFERENCE.fullmatch(text)
    if not found:
        return []
    return [
        shape
        for shape in scene.shapes
        if shape.shape == found["shape"]
        and found["colour"] in (None, shape.colour)
        and found["cell"] in (None, CELLS[shape.cell])
    ]


def _holds(scene: Scene, text: str) -> bool:
    found = _CLAIM.fullmatch(text)
    if not found:
        return False
    subjects, objects = _referents(scene, found[1]), _referents(scene, found[3])
    if len(subjects) != 1 or len(objects) != 1:
        return False
    return RELATIONS[found[2]](subjects[0], objects[0])
