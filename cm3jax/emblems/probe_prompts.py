"""Evaluation prompts with the scene that each answer must show.

A prompt's scene belongs to no split (`sample.home`), so no document that a model has trained on or
may retrieve repeats it.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from cm3jax.emblems import sample
from cm3jax.emblems.draw import SIZE, draw_scene
from cm3jax.emblems.examples import bank_documents, example
from cm3jax.emblems.looks import MEMORY_ONLY, catalogue, integer
from cm3jax.emblems.reader import read_batch
from cm3jax.emblems.scene import GRID, Scene
from cm3jax.emblems.wording import caption, caption_states
from cm3jax.shapes import UInt8

ProbeKind = Literal["scene", "heldout", "heldout_pair", "caption", "infill"]
"""`scene`: draw shapes. `heldout`, `heldout_pair`: draw one or two memory-only emblems.
`caption`: tell what an image of shapes shows. `infill`: restore the lower half of one."""

LOWER_HALF = tuple(range(GRID * GRID // 2, GRID * GRID))
"""The cells that an infilling prompt masks; its caption determines them."""


@dataclasses.dataclass(frozen=True, eq=False)
class ProbePrompt:
    """One question to a model, and its answer."""

    key: str
    kind: ProbeKind
    text: str
    """The caption: what to draw; in a `caption` prompt, one correct answer."""
    scene: Scene
    """What the answer must show or tell."""
    image: UInt8[np.ndarray, "S S 3"]
    """The image of `scene`: given (`caption`), given above `LOWER_HALF` (`infill`), or one that
    the model never sees."""


def prompts(kind: ProbeKind, count: int, seed: int = 0, size: int = SIZE) -> list[ProbePrompt]:
    """The first `count` prompts of a kind; `seed` is the dataset's, whose emblems they name.

    Heldout prompts take the memory-only emblems in turn, and put a single emblem at a place where
    no document of the bank shows it.
    """
    if kind not in get_args(ProbeKind):
        raise ValueError(f"no prompts of kind {kind!r}; there are {', '.join(get_args(ProbeKind))}")
    return [_prompt(kind, index, seed, size) for index in range(count)]


def _prompt(kind: ProbeKind, index: int, seed: int, size: int) -> ProbePrompt:
    rng = random.Random(f"emblems {seed} prompts {kind} {index}")
    scene = sample.at_home("prompts", _scenes(rng, kind, index, seed))
    return ProbePrompt(f"{kind}-{index}", kind, caption(scene), scene, draw_scene(scene, size))


def _scenes(rng: random.Random, kind: ProbeKind, index: int, seed: int) -> Callable[[], Scene]:
    """Draws scenes of a kind."""
    number, emblems = sample.memory_only(index), catalogue(seed)
    if kind == "heldout":
        documents = [example("bank", i, seed).scene for i in bank_documents(number)]
        known = {document.emblems[0].place for document in documents}
        return lambda: _until(
            lambda: sample.with_emblem(rng, number, emblems),
            lambda scene: scene.emblems[0].place not in known,
        )
    if kind == "heldout_pair":
        return lambda: sample.with_pair(
            rng, (number, sample.memory_only(index + 1 + integer(rng, MEMORY_ONLY - 1))), emblems
        )
    if kind == "infill":
        return lambda: _until(
            lambda: sample.plain_scene(rng),
            lambda scene: any(shape.cell in LOWER_HALF for shape in scene.shapes),
        )
    return lambda: sample.plain_scene(rng)


def _until(draw_scene: Callable[[], Scene], fits: Callable[[Scene], bool]) -> Scene:
    while not fits(scene := draw_scene()):
        continue
    return scene


def confirms(image: UInt8[np.ndarray, "S S 3"], expected: Scene) -> bool:
    """Whether an image shows the expected scene exactly: looks, places, shapes, background."""
    return confirms_batch(image[None], [expected])[0]


def confirms_batch(images: UInt8[np.ndarray, "B S S 3"], expected: list[Scene]) -> list[bool]:
    """`confirms` of many images, each with its own scene."""
    pairs = zip(read_batch(images), expected, strict=True)
    return [reading.scene == scene.seen() for reading, scene in pairs]


def confirms_emblems(images: UInt8[np.ndarray, "B S S 3"], expected: list[Scene]) -> list[bool]:
    """Whether each image can be read and shows the emblems of its own scene at their places,
    whatever is next to them."""
    pairs = zip(read_batch(images), expected, strict=True)
    return [
        reading.scene is not None and reading.scene.emblems == scene.seen().emblems
        for reading, scene in pairs
    ]


def tells(text: str, expected: Scene) -> bool:
    """Whether a caption asserts the expected scene exactly, and nothing untrue besides."""
    return caption_states(text) == expected.told()
