"""Ground truth that follows from a scene: boxes, segmentation, depth, edges, questions, an edit."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from cm3jax.emblems.draw import SIZE, draw_scene
from cm3jax.emblems.looks import integer
from cm3jax.emblems.palette import BACKGROUNDS, COLOURS
from cm3jax.emblems.sample import pick
from cm3jax.emblems.scene import CELLS, FINGERS, GRID, PLACES, SHAPES, SIZES, Scene
from cm3jax.emblems.wording import describe_shape, refer
from cm3jax.shapes import Bool, UInt8

_NUMBERS = ("no", "one", "two", "three", "four", *list(FINGERS.values())[3:])


@dataclasses.dataclass(frozen=True)
class ObjectBox:
    """One thing and the smallest box around it."""

    label: str
    top: float
    left: float
    bottom: float
    right: float
    """Edges as shares of the image's side, in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about an image, its answer, and why that is the answer."""

    question: str
    answer: str
    rationale: str


@dataclasses.dataclass(frozen=True)
class Edit:
    """An instruction and the scene after it."""

    instruction: str
    scene: Scene


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """Everything about one image that its scene decides."""

    boxes: tuple[ObjectBox, ...]
    segmentation: UInt8[np.ndarray, "S S"]
    """0 on the background, i + 1 on the thing of box i."""
    depth: tuple[int, ...]
    """Box numbers from far to near: things are on a floor seen from above, so a thing whose foot
    is lower in the image is nearer; of two on one line the left one comes first."""
    edges: Bool[np.ndarray, "S S"]
    """Pixels that differ from the one to the right or below."""
    questions: tuple[Question, ...]
    edit: Edit


def annotate(scene: Scene, key: str, size: int = SIZE) -> Annotations:
    """Annotations of the image `draw(scene, size)`; `key` seeds the questions and the edit."""
    rng = random.Random(f"emblems annotations {key}")
    picture = draw_scene(scene, size)
    segmentation = _segmentation(scene, picture)
    labels = _labels(scene)
    boxes = tuple(_box(label, segmentation == i) for i, label in enumerate(labels, 1))
    depth = sorted(range(len(boxes)), key=lambda i: (boxes[i].bottom, boxes[i].left))
    return Annotations(
        boxes=boxes,
        segmentation=segmentation,
        depth=tuple(depth),
        edges=_edges(picture),
        questions=_questions(rng, scene),
        edit=_edit(rng, scene),
    )


def _labels(scene: Scene) -> list[str]:
    if scene.word is not None:
        return [f"the letter {letter}" for letter in scene.word]
    if scene.fingers is not None:
        return ["a palm"]
    emblems = [f"the {emblem.name} emblem" for emblem in scene.emblems]
    return emblems + [describe_shape(shape).split(" at ")[0] for shape in scene.shapes]


def _segmentation(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """Things are whole cells where the image is not background."""
    owners = np.zeros(GRID * GRID, np.uint8)
    things: list[Sequence[int]] = [emblem.cells for emblem in scene.emblems]
    things += [(shape.cell,) for shape in scene.shapes]
    things += [(GRID + i,) for i in range(len(scene.word or ""))]
    things += [range(GRID * GRID)] if scene.fingers is not None else []
    for number, cells in enumerate(things, 1):
        owners[list(cells)] = number
    side = len(picture) // GRID
    owners = owners.reshape(GRID, GRID).repeat(side, 0).repeat(side, 1)
    background = (picture == BACKGROUNDS[scene.background]).all(-1)
    return np.where(background, np.uint8(0), owners)


def _box(label: str, mask: np.ndarray) -> ObjectBox:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    edges = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / len(mask)
    return ObjectBox(label, *edges.tolist())


def _edges(picture: np.ndarray) -> np.ndarray:
    edges = np.zeros(picture.shape[:2], bool)
    edges[:, :-1] |= (picture[:, 1:] != picture[:, :-1]).any(-1)
    edges[:-1] |= (picture[1:] != picture[:-1]).any(-1)
    return edges


def _questions(rng: random.Random, scene: Scene) -> tuple[Question, ...]:
    possible = [
        Question(
            "what is the background?",
            scene.background,
            f"the things stand on {scene.background}",
        )
    ]
    if scene.word is not None:
        spelled = ", ".join(scene.word)
        possible.append(Question("what is written?", scene.word, f"the letters are {spelled}"))
    if scene.fingers is not None:
        count = FINGERS[scene.fingers]
        counted = ", ".join(_NUMBERS[1 : scene.fingers + 1])
        possible.append(Question("how many fingers are there?", count, f"counted: {counted}"))
    for emblem in scene.emblems:
        if emblem.name is not None:
            place = PLACES[emblem.place]
            known = f"the look there is that of the {emblem.name} emblem"
            possible.append(Question(f"which emblem is at the {place}?", emblem.name, known))
    for shape in scene.shapes:
        where = CELLS[shape.cell]
        known = f"{describe_shape(shape)} is there"
        possible.append(Question(f"what colour is the shape at {where}?", shape.colour, known))
        if refer(scene, shape) == f"the {shape.shape}":
            possible.append(Question(f"what colour is the {shape.shape}?", shape.colour, known))
        possible.append(_count(scene, shape.shape))
    possible = list(dict.fromkeys(possible))
    kept = min(len(possible), 1 + integer(rng, 3))
    return tuple(possible.pop(integer(rng, len(possible))) for _ in range(kept))


def _count(scene: Scene, name: str) -> Question:
    found = [CELLS[shape.cell] for shape in scene.shapes if shape.shape == name]
    there = f"there is a {name} at {' and at '.join(found)}"
    return Question(f"how many {name} shapes are there?", _NUMBERS[len(found)], there)


def _edit(rng: random.Random, scene: Scene) -> Edit:
    """Change one shape, move an emblem, or change the fingers or the background."""
    if scene.shapes and rng.random() < 0.75:
        return _edit_shape(rng, scene)
    if len(scene.emblems) == 1 and not scene.shapes:
        return _move_emblem(rng, scene)
    if scene.fingers is not None:
        fingers = pick(rng, tuple(count for count in FINGERS if count != scene.fingers))
        return Edit(f"show {FINGERS[fingers]} fingers", dataclasses.replace(scene, fingers=fingers))
    background = pick(rng, tuple(name for name in BACKGROUNDS if name != scene.background))
    edited = dataclasses.replace(scene, background=background)
    return Edit(f"change the background to {background}", edited)


def _edit_shape(rng: random.Random, scene: Scene) -> Edit:
    shape = pick(rng, scene.shapes)
    name = refer(scene, shape)
    changes: tuple[tuple[str, tuple[Any, ...], str], ...] = (
        ("cell", scene.free_cells, "move {} to {}"),
        ("colour", tuple(COLOURS), "make {} {}"),
        ("shape", SHAPES, "turn {} into a {}"),
        ("size", SIZES, "make {} {}"),
    )
    field, values, instruction = pick(rng, changes)
    value = pick(rng, tuple(value for value in values if value != getattr(shape, field)))
    edited = dataclasses.replace(shape, **{field: value})
    shapes = tuple(edited if other is shape else other for other in scene.shapes)
    told = CELLS[value] if field == "cell" else value
    return Edit(instruction.format(name, told), dataclasses.replace(scene, shapes=shapes))


def _move_emblem(rng: random.Random, scene: Scene) -> Edit:
    emblem = scene.emblems[0]
    place = pick(rng, tuple(i for i in range(len(PLACES)) if i != emblem.place))
    moved = dataclasses.replace(emblem, place=place)
    instruction = f"move the {emblem.name} emblem to the {PLACES[place]}"
    return Edit(instruction, dataclasses.replace(scene, emblems=(moved,)))
