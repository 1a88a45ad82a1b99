"""Evaluation prompts with the scene that each answer must show; no document repeats one."""

import dataclasses
import random
from collections.abc import Callable
from typing import Literal

import numpy as np

from cm3jax.data.emblems.sample import pick
from cm3jax.emoji.examples import Examples, at_home, pair, single
from cm3jax.emoji.looks import SIDES, Thing
from cm3jax.emoji.names import is_flag
from cm3jax.emoji.scene import Scene, caption
from cm3jax.shapes import UInt8

Kind = Literal["heldout", "flag", "style", "pair"]
"""`heldout`: a thing that training never shows. `flag`: such a flag. `style`: a thing in the one
style that training never shows it in. `pair`: two things that training never shows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One question to a model, and its answer."""

    key: str
    kind: Kind
    text: str
    scene: Scene
    picture: UInt8[np.ndarray, "S S 3"]


def prompts(examples: Examples, kind: Kind, count: int) -> list[Prompt]:
    """The first `count` prompts of a kind; they go round the kind's things in turn, and always say
    the style. Raises `ValueError` where the catalogue has no such things."""
    catalogue = examples.catalogue
    things = {
        "heldout": catalogue.unseen,
        "pair": catalogue.unseen,
        "flag": tuple(thing for thing in catalogue.unseen if is_flag(thing.key)),
        "style": tuple(thing for thing in catalogue.trained if thing.held_out),
    }[kind]
    if len(things) <= (kind == "pair"):
        raise ValueError(f"the catalogue has no things for prompts of kind {kind!r}")
    return [_prompt(examples, kind, things, index) for index in range(count)]


def _prompt(examples: Examples, kind: Kind, things: tuple[Thing, ...], index: int) -> Prompt:
    rng = random.Random(f"emoji {examples.seed} prompts {kind} {index}")
    scene = at_home("prompts", _scenes(rng, kind, things, index))
    told = tuple(dataclasses.replace(placed, tells_style=True) for placed in scene.things)
    scene = Scene(scene.ground, told)
    document = examples.document(f"{kind}-{index}", kind, scene)
    return Prompt(document.key, kind, caption(scene), scene, document.picture)


def _scenes(
    rng: random.Random, kind: Kind, things: tuple[Thing, ...], index: int
) -> Callable[[], Scene]:
    """Draws scenes of a kind; every style of `things` that training does not show may come."""
    thing = things[index % len(things)]
    if kind == "pair":
        others = tuple(other for other in things if other is not thing)
        return lambda: pair(
            rng, [(one, pick(rng, one.held_out)) for one in (thing, pick(rng, others))]
        )
    return lambda: single(rng, thing, pick(rng, thing.held_out), pick(rng, tuple(SIDES)))
