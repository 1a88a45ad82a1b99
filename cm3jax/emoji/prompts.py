"""Evaluation prompts with the scene that each answer must show; no document repeats one."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from cm3jax.emblems.sample import pick
from cm3jax.emoji.examples import Examples, pair, scene_of_split, single
from cm3jax.emoji.looks import SIDES, Thing, apart
from cm3jax.emoji.names import is_flag
from cm3jax.emoji.scene import EmojiScene, emoji_caption
from cm3jax.shapes import UInt8

EmojiKind = Literal["heldout", "flag", "style", "pair", "together"]
"""`heldout`: a thing that training never shows. `flag`: such a flag. `style`: a thing in the one
style that training never shows it in. `pair`: two things that training never shows. `together`: two
that training shows, but never together."""


@dataclasses.dataclass(frozen=True, eq=False)
class EmojiPrompt:
    """One question to a model, and its answer."""

    key: str
    kind: EmojiKind
    text: str
    scene: EmojiScene
    image: UInt8[np.ndarray, "S S 3"]


def emoji_prompts(examples: Examples, kind: EmojiKind, count: int) -> list[EmojiPrompt]:
    """The first `count` prompts of a kind; they take the kind's things in turn, and always say the
    style. Raises `ValueError` where the catalogue has no such things.
    """
    catalogue, trained = examples.catalogue, examples.catalogue.trained
    things = {
        "heldout": catalogue.unseen,
        "pair": catalogue.unseen,
        "flag": tuple(thing for thing in catalogue.unseen if is_flag(thing.key)),
        "style": tuple(thing for thing in trained if thing.held_out),
        "together": tuple(thing for thing in trained if any(_apart_from(thing, trained))),
    }[kind]
    if len(things) <= (kind in ("pair", "together")):
        raise ValueError(f"the catalogue has no things for prompts of kind {kind!r}")
    return [_prompt(examples, kind, things, index) for index in range(count)]


def _prompt(
    examples: Examples, kind: EmojiKind, things: tuple[Thing, ...], index: int
) -> EmojiPrompt:
    rng = random.Random(f"emoji {examples.seed} prompts {kind} {index}")
    scene = scene_of_split("prompts", _scenes(rng, kind, things, index))
    told = tuple(dataclasses.replace(placed, tells_style=True) for placed in scene.things)
    scene = EmojiScene(scene.ground, told)
    document = examples.document(f"{kind}-{index}", kind, scene)
    return EmojiPrompt(document.key, kind, emoji_caption(scene), scene, document.picture)


def _scenes(
    rng: random.Random, kind: EmojiKind, things: tuple[Thing, ...], index: int
) -> Callable[[], EmojiScene]:
    """Draws scenes of a kind; every style that training does not show may come, or of things that
    it shows every style that it does."""
    thing = things[index % len(things)]
    if kind == "pair":
        others = tuple(other for other in things if other is not thing)
        both = (thing, pick(rng, others))
        return lambda: pair(rng, [(one, pick(rng, one.held_out)) for one in both])
    if kind == "together":
        both = (thing, pick(rng, tuple(_apart_from(thing, things))))
        return lambda: pair(rng, [(one, pick(rng, one.shown)) for one in both])
    return lambda: single(rng, thing, pick(rng, thing.held_out), pick(rng, tuple(SIDES)))


def _apart_from(thing: Thing, things: tuple[Thing, ...]) -> Iterator[Thing]:
    return (other for other in things if other is not thing and apart(thing, other))
