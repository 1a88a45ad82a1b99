"""Images for many captions, drawn so that a killed run goes on where it was.

    docs_2/settings.json             what the images were drawn by; other settings are refused
    docs_2/drawn-00003.json          a chunk of captions is done, and which documents they saw
    docs_2/samples_8/000000123.png   the best of 8 samples for caption 123

Chunks are the same whoever draws them, so an interrupted run ends with the same images, and
several machines can share a folder: each draws every n-th chunk.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from cm3jax.config import DecodeConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.coco import Caption
from cm3jax.generation.answers import Generated, image_of
from cm3jax.generation.generator import Generator
from cm3jax.io.files import write_atomic, write_first, write_json
from cm3jax.io.typed_json import read_fields
from cm3jax.report.html import png
from cm3jax.retrieval.clip_encoder import ClipEncoder, fit_picture
from cm3jax.retrieval.pages import noted
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.shapes import Float

Item = TypeVar("Item")

CHUNK = 64
"""Captions drawn together, and images whose features are written together."""

Share = tuple[int, int]
"""(i, n), i from 0: of several processes' work every n-th chunk from the i-th."""
ALL: Share = (0, 1)


def chunks(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The items in chunks, each of which one process draws as a whole."""
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How images are drawn."""

    documents: int
    """Documents in front of each caption."""
    samples: tuple[int, ...]
    """For each number n, the image kept per caption is the best of n by CLIP."""
    seed: int
    decode: DecodeConfig
    origin: dict[str, str]
    """Fingerprints of captions, weights, bank and code."""

    def folder(self, out: epath.PathLike, samples: int) -> epath.Path:
        """The folder of the best of `samples`."""
        return self._home(out) / f"samples_{samples}"

    def files(self, captions: Sequence[Caption], out: epath.PathLike) -> Iterator[epath.Path]:
        """The images of these captions, of every number of samples."""
        for samples in self.samples:
            folder = self.folder(out, samples)
            yield from (folder / f"{caption.id:012d}.png" for caption in captions)

    def _home(self, out: epath.PathLike) -> epath.Path:
        return epath.Path(out) / f"docs_{self.documents}"

    def claim(self, out: epath.PathLike) -> epath.Path:
        """The folder of this number of documents; `UserError` if other settings have drawn there"""
        home = self._home(out)
        # As JSON has it: lists for tuples.
        decode = {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in dataclasses.asdict(self.decode).items()
        }
        mine = {
            "samples": list(self.samples),
            "seed": self.seed,
            "decode": decode,
            **self.origin,
        }
        path = home / "settings.json"
        write_first(path, mine)
        theirs = read_fields(path, {}, "the settings of earlier images")
        other = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if other:
            raise UserError(
                f"{home} holds images drawn with other {', '.join(other)}; choose another --out, "
                "or remove it."
            )
        return home


def draw_missing(
    generator: Generator,
    encoder: ClipEncoder,
    captions: Sequence[Caption],
    setting: Setting,
    out: epath.PathLike,
    share: Share = ALL,
    say: Callable[[str], None] = print,
) -> None:
    """Draw what is missing of this process's share of the chunks: also one that was drawn, but has
    lost an image since.

    Raises `UserError` as `Setting.claim` and the generator.
    """
    home = setting.claim(out)
    index, count = share
    mine = list(enumerate(chunks(captions)))[index::count]
    for done, (number, part) in enumerate(mine, 1):
        note = home / f"drawn-{number:05d}.json"
        if not (note.exists() and all(file.exists() for file in setting.files(part, out))):
            write_json(note, _draw_chunk(generator, encoder, part, setting, out))
            say(f"{home.name}: {done} of {len(mine)} chunks of {CHUNK} captions drawn")


def _draw_chunk(
    generator: Generator,
    encoder: ClipEncoder,
    captions: Sequence[Caption],
    setting: Setting,
    out: epath.PathLike,
) -> dict[str, Any]:
    """Draw and write the images; what there is to note of each."""
    texts = [caption.text for caption in captions]
    shown = generator.retrieve(texts, k=setting.documents) if setting.documents else None
    groups = generator.text_to_image(
        texts,
        shown,
        samples=max(setting.samples),
        seed=setting.seed,
        decode=setting.decode,
        prompt_ids=[caption.id for caption in captions],
    )
    vectors = encoder.encode_texts(texts)
    notes = {}
    for caption, vector, group in zip(captions, vectors, groups, strict=True):
        alike = likeness(encoder, vector, group) if len(group) > 1 else np.zeros(1, np.float32)
        for samples in setting.samples:
            best = group[int(np.argmax(alike[:samples]))]
            write_atomic(
                setting.folder(out, samples) / f"{caption.id:012d}.png", png(image_of(best))
            )
        found = [one.meta for one in group[0].documents if isinstance(one, Retrieved)]
        notes[str(caption.id)] = {
            "documents": [document.key for document in found],
            "shown": [noted(document) for document in found],
            "cosines": alike.astype(float).tolist(),
        }
    return notes


def likeness(
    encoder: ClipEncoder, vector: Float[np.ndarray, " E"], group: Sequence[Generated]
) -> Float[np.ndarray, " G"]:
    """Cosines of a text's vector and its samples'."""
    pictures = [fit_picture(image_of(sample), encoder.config) for sample in group]
    return encoder.encode_images(pictures) @ vector
