"""Cases of the instruction-tuning tasks: a function of (seed, task, split, index) only.

Scenes of a case belong to its split (`sample.home`), so that no image that evaluation asks for or
shows was drawn in training.

Captions by `short_caption` leave out places and sizes: the map or the boxes beside them say those.
Things are named row by row, in the order of the image.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable

import numpy as np

from cm3jax.emblems import sample
from cm3jax.emblems.annotations import Annotations, Question, annotate
from cm3jax.emblems.draw import SIZE, draw_scene
from cm3jax.emblems.examples import ORIGINS
from cm3jax.emblems.looks import integer
from cm3jax.emblems.palette import BACKGROUNDS, COLOURS
from cm3jax.emblems.scene import FINGERS, SHAPES, Scene
from cm3jax.emblems.wording import caption, relations, step
from cm3jax.shapes import UInt8
from cm3jax.tasks import TASKS, grounded
from cm3jax.tasks.questions import explained
from cm3jax.tasks.task import Case, Value

SPLITS = ("train", "validation", "prompts")
"""Cases for training, for its validation loss, and held out for evaluation."""

CLASS_COLOURS = dict(zip(SHAPES, COLOURS, strict=True))
"""Colours of the classes in a segmentation map, on white."""
_DEPTH_COLOURS = ("yellow", "orange", "red", "purple")
"""From near to far, on black."""
_MORE_CLAIMS = 3  # relations in a long caption, at most


@dataclasses.dataclass(frozen=True)
class Asked:
    """A case and what is true of it."""

    case: Case
    scenes: tuple[Scene, ...]
    """What each image of the answer shows, or, where the answer is a text, the image shown."""


def asked(task: str, split: str, index: int, seed: int = 0, size: int = SIZE) -> Asked:
    """Case `index` of a task in a split, with images of `size` pixels.

    Raises `KeyError` for a task that emblems does not have, `ValueError` for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    rng = random.Random(f"emblems {seed} task {task} {split} {index}")
    values, scenes = _MAKERS[task](rng, split, size)
    source, licence = sample.pick(rng, ORIGINS)
    return Asked(Case(f"{task}-{split}-{index}", TASKS[task], values, source, licence), scenes)


_Filled = tuple[dict[str, Value], tuple[Scene, ...]]


def _plain(rng: random.Random, split: str) -> Scene:
    return sample.at_home(split, lambda: sample.plain_scene(rng))


def short_caption(scene: Scene) -> str:
    """The things of a scene without places and sizes: "a red circle and a blue ring on sand"."""
    things = [f"a {shape.colour} {shape.shape}" for shape in scene.shapes]
    return f"{' and '.join(things)} on {scene.background}"


def _editing(rng: random.Random, split: str, size: int) -> _Filled:
    while True:
        scene = _plain(rng, split)
        edit = annotate(scene, f"edit {rng.random()}").edit
        if sample.home(caption(edit.scene)) == split:
            break
    values = {
        "image": draw_scene(scene, size),
        "instruction": edit.instruction,
        "answer": draw_scene(edit.scene, size),
    }
    return values, (edit.scene,)


def segmentation_map(scene: Scene, truth: Annotations) -> UInt8[np.ndarray, "S S 3"]:
    """The class of each pixel as a colour."""
    colours = [BACKGROUNDS["white"], *(COLOURS[CLASS_COLOURS[s.shape]] for s in scene.shapes)]
    return np.asarray(colours, np.uint8)[truth.segmentation]


def edge_map(scene: Scene, truth: Annotations) -> UInt8[np.ndarray, "S S 3"]:
    """Edges in red on white: lines that the miniature's image tokenizer tells apart."""
    lines = truth.edges[..., None]
    return np.where(lines, COLOURS["red"], BACKGROUNDS["white"]).astype(np.uint8)


def depth_map(scene: Scene, truth: Annotations) -> UInt8[np.ndarray, "S S 3"]:
    """How near each thing is, as a colour."""
    colours = np.zeros((1 + len(scene.shapes), 3), np.uint8)
    colours[0] = BACKGROUNDS["black"]
    for colour, thing in zip(_DEPTH_COLOURS, reversed(truth.depth), strict=False):
        colours[1 + thing] = COLOURS[colour]
    return colours[truth.segmentation]


def _from_map(make: Callable[[Scene, Annotations], np.ndarray]):
    def structure(rng: random.Random, split: str, size: int) -> _Filled:
        scene = _plain(rng, split)
        values = {
            "image": make(scene, annotate(scene, "map", size)),
            "caption": short_caption(scene),
            "answer": draw_scene(scene, size),
        }
        return values, (scene,)

    return structure


def boxes(scene: Scene, coloured: bool = True) -> list[grounded.Box]:
    """The boxes of a scene's shapes on the grid of the task, labelled "red circle" or "circle"."""
    labels = [f"{s.colour} {s.shape}" if coloured else s.shape for s in scene.shapes]
    found = []
    for label, box in zip(labels, annotate(scene, "boxes").boxes, strict=True):
        edges = (round(edge * grounded.GRID) for edge in (box.left, box.top, box.right, box.bottom))
        found.append(grounded.Box(label, *edges))
    return found


def _grounded(rng: random.Random, split: str, size: int) -> _Filled:
    scene = _plain(rng, split)
    told = grounded.write_boxes(boxes(scene, coloured=rng.random() < 0.5))
    return {"caption": short_caption(scene), "boxes": told, "answer": draw_scene(scene, size)}, (
        scene,
    )


def _words(rng: random.Random, split: str, size: int) -> _Filled:
    scene = sample.at_home(split, lambda: sample.word(rng))
    return {"text": scene.word or "", "answer": draw_scene(scene, size)}, (scene,)


def _caption(rng: random.Random, split: str, size: int) -> _Filled:
    scene = _plain(rng, split)
    return {"image": draw_scene(scene, size), "answer": caption(scene)}, (scene,)


def _long_caption(rng: random.Random, split: str, size: int) -> _Filled:
    """A caption of two to four shapes, with the first relation of each shape to the next."""
    while len((scene := _plain(rng, split)).shapes) < 2:
        continue
    every = relations(scene)
    neighbours = itertools.pairwise(scene.shapes)
    firsts = [
        [claim for claim in every if (claim.subject, claim.object) == pair][:1]
        for pair in neighbours
    ]
    claims = tuple(claim for found in firsts for claim in found)[:_MORE_CLAIMS]
    text = caption(scene, claims, background_first=True)
    return {"image": draw_scene(scene, size), "answer": text}, (scene,)


def _question(rng: random.Random, split: str) -> tuple[Scene, Question]:
    """A question about shapes or, one in ten, about a palm."""
    scene = sample.palm(rng) if rng.random() < 0.1 else _plain(rng, split)
    questions = annotate(scene, f"question {rng.random()}").questions
    return scene, sample.pick(rng, questions)


def _vqa(rng: random.Random, split: str, size: int) -> _Filled:
    scene, question = _question(rng, split)
    words = question.question
    # People begin a question with a capital letter.
    words = words[0].upper() + words[1:] if rng.random() < 0.5 else words
    values: dict[str, Value] = {
        "question": words,
        "answer": question.answer,
        "image": draw_scene(scene, size),
    }
    return values, (scene,)


_COUNTS = ("no", "one", *FINGERS.values())


def _science(rng: random.Random, split: str, size: int) -> _Filled:
    """With four options, the right one anywhere among them."""
    scene, question = _question(rng, split)
    right = question.answer
    pool = next(p for p in (tuple(BACKGROUNDS), tuple(COLOURS), _COUNTS) if right in p)
    wrong = [option for option in pool if option != right]
    options = [right, *(wrong.pop(integer(rng, len(wrong))) for _ in range(3))]
    mixed = [options.pop(integer(rng, len(options))) for _ in range(4)]
    values: dict[str, Value] = {
        "question": question.question,
        "options": ", ".join(mixed),
        "answer": explained(question.rationale, right),
        "image": draw_scene(scene, size),
    }
    return values, (scene,)


def _story(rng: random.Random, split: str, size: int) -> _Filled:
    """None of a story's images is held out unless its first one is."""
    while True:
        scenes = sample.story(rng)
        homes = [sample.home(caption(scene)) for scene in scenes]
        if homes[0] == split and (split == "prompts" or "prompts" not in homes):
            break
    texts = [caption(scenes[0])]
    texts += [
        step(before.shapes[0], after.shapes[0]) for before, after in itertools.pairwise(scenes)
    ]
    segments: list[str | np.ndarray] = []
    for text, scene in zip(texts, scenes, strict=True):
        segments += [text, draw_scene(scene, size)]
    return {"beginning": segments[0], "answer": tuple(segments[1:])}, scenes


_MAKERS = {
    "editing": _editing,
    "segmentation": _from_map(segmentation_map),
    "edges": _from_map(edge_map),
    "depth": _from_map(depth_map),
    "grounded": _grounded,
    "words": _words,
    "caption": _caption,
    "long_caption": _long_caption,
    "vqa": _vqa,
    "science": _science,
    "story": _story,
}
NAMES = tuple(_MAKERS)
"""The tasks that emblems has."""
