"""Documents of the dataset, a function of (seed, split, index, number of training emblems) only.

train, validation   per 100: 45 with one emblem, 20 with two, 25 plain scenes, 4 words, 3 palms,
                    3 stories
bank                5 documents of each memory-only emblem, then 3 of each training emblem;
                    a seventh are halves: only a text or only an image
"""

import dataclasses
import itertools
import random

import numpy as np

from cm3jax.emblems import sample
from cm3jax.emblems.draw import SIZE, draw_scene
from cm3jax.emblems.looks import MEMORY_ONLY, TRAINING, Catalogue, catalogue
from cm3jax.emblems.scene import Scene
from cm3jax.emblems.wording import Relation, caption, step

_PER_MEMORY_ONLY = 5
_PAIRS_PER_MEMORY_ONLY = 3  # at least
_PER_TRAINING = 3
_MEMORY_DOCUMENTS = _PER_MEMORY_ONLY * MEMORY_ONLY
_SURE_PAIRS = _PAIRS_PER_MEMORY_ONLY * MEMORY_ONLY

SPLITS = ("train", "validation", "bank")
ORIGINS = (
    ("emblems atelier", "CC0-1.0"),
    ("emblems archive", "CC-BY-4.0"),
    ("emblems commons", "CC-BY-SA-4.0"),
)
"""Sources of documents, and the licence of each."""

_HALVES = 0.165  # of the bank's documents after the sure pairs
_SHORT = 0.8  # of plain scenes; the others' captions go on with relations
_PLAIN_ORDER = 0.8  # of captions name the background last


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One document with its ground truth; `annotations.annotate` derives the rest from `scenes`."""

    key: str
    kind: str
    """`emblem`, `pair`, `scene`, `word`, `palm`, `story`, or `memory`: a memory-only emblem."""
    segments: tuple[str | np.ndarray, ...]
    """Captions and uint8 [S, S, 3] images in order."""
    scenes: tuple[Scene, ...]
    """What each image shows (or would show, where there is only a text)."""
    source: str
    licence: str

    @property
    def scene(self) -> Scene:
        """The scene of the first image."""
        return self.scenes[0]

    @property
    def emblems(self) -> tuple[str, ...]:
        """Names of the emblems in it."""
        return self.scene.names


def bank_size(training: int = TRAINING) -> int:
    """Documents in the bank, given the number of training emblems."""
    return _MEMORY_DOCUMENTS + _PER_TRAINING * training


def example(
    split: str, index: int, seed: int = 0, size: int = SIZE, training: int = TRAINING
) -> Example:
    """Document `index` of a split, counted from 0, at `size` pixels a side.

    `training` is the number of training emblems. The bank ends at `bank_size(training)`; raises
    `IndexError` beyond it, the other splits go on for ever.
    """
    if split not in SPLITS or index < 0 or (split == "bank" and index >= bank_size(training)):
        raise IndexError(f"emblems has no document {index} in {split!r}")
    rng = random.Random(f"emblems {seed} {split} {index}")
    emblems = catalogue(seed, training)
    if split == "bank":
        kind, scenes = _bank(rng, index, emblems)
    else:
        kind, scenes = _mixture(rng, split, index, emblems)
    source, licence = sample.pick(rng, ORIGINS)
    segments: list[str | np.ndarray] = []
    for text, scene in zip(_texts(rng, kind, scenes), scenes, strict=True):
        segments += [text, draw_scene(scene, size)]
    if split == "bank":
        segments = _parts(rng, segments, pairs_only=index < _SURE_PAIRS)
    return Example(f"{split}-{index}", kind, tuple(segments), scenes, source, licence)


def bank_documents(number: int, training: int = TRAINING) -> range:
    """Indices of the bank's documents of emblem `number`."""
    if number < MEMORY_ONLY:
        return range(number, _MEMORY_DOCUMENTS, MEMORY_ONLY)
    return range(_MEMORY_DOCUMENTS + number - MEMORY_ONLY, bank_size(training), training)


def _mixture(
    rng: random.Random, split: str, index: int, emblems: Catalogue
) -> tuple[str, tuple[Scene, ...]]:
    """The kind of a document and its scenes.

    Kinds come in exact shares of every 100 documents. Every second one-emblem document and the
    first emblem of every pair go round the training emblems in turn, so that the rarest are seen
    too; the others follow Zipf's law.
    """
    block, place = divmod(index, 100)
    slot = 37 * place % 100
    if slot < 45:
        turn, zipf = divmod(45 * block + slot, 2)
        number = sample.frequent(rng, emblems) if zipf else _in_turn(turn, emblems)
        return "emblem", (sample.at_home(split, lambda: sample.with_emblem(rng, number, emblems)),)
    if slot < 65:
        first = _in_turn(20 * block + slot - 45, emblems)
        return "pair", (sample.at_home(split, lambda: _pair(rng, first, emblems)),)
    if slot < 90:
        return "scene", (sample.at_home(split, lambda: sample.plain_scene(rng)),)
    if slot < 94:
        return "word", (sample.at_home(split, lambda: sample.word(rng)),)
    if slot < 97:
        return "palm", (sample.palm(rng),)  # only 20 exist, so every split shows them all
    return "story", _story(rng, split)


def _in_turn(index: int, emblems: Catalogue) -> int:
    """The number of training emblem `index`, which counts round and round."""
    return MEMORY_ONLY + index % emblems.training


def _pair(rng: random.Random, first: int, emblems: Catalogue) -> Scene:
    """An emblem with another one, which is drawn each time: one pair has few scenes in a split."""
    while (second := sample.frequent(rng, emblems)) == first:
        continue
    return sample.with_pair(rng, (first, second), emblems)


def _story(rng: random.Random, split: str) -> tuple[Scene, ...]:
    """A story of its split, none of whose images is kept for prompts."""
    while True:
        scenes = sample.story(rng)
        texts = [caption(scene) for scene in scenes]
        kept = any(sample.home(text) == "prompts" for text in texts)
        if not kept and sample.home(" ".join(texts)) == split:
            return scenes


def _bank(rng: random.Random, index: int, emblems: Catalogue) -> tuple[str, tuple[Scene, ...]]:
    memory = index < _MEMORY_DOCUMENTS
    later = index - _MEMORY_DOCUMENTS
    number = sample.memory_only(index) if memory else _in_turn(later, emblems)
    scene = sample.at_home("bank", lambda: sample.with_emblem(rng, number, emblems))
    return "memory" if memory else "emblem", (scene,)


def _texts(rng: random.Random, kind: str, scenes: tuple[Scene, ...]) -> list[str]:
    claims: tuple[Relation, ...] = ()
    if kind == "scene" and rng.random() >= _SHORT:
        claims = sample.claims(rng, scenes[0])
    texts = [caption(scenes[0], claims, background_first=rng.random() >= _PLAIN_ORDER)]
    for before, after in itertools.pairwise(scenes):
        texts.append(step(before.shapes[0], after.shapes[0]))
    return texts


def _parts(rng: random.Random, segments: list, pairs_only: bool) -> list:
    """A pair, or one half of it."""
    chance = rng.random()
    if pairs_only or chance >= _HALVES:
        return segments
    return segments[:1] if chance < _HALVES / 2 else segments[1:]
