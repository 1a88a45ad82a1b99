"""Segments of prompts as vocabulary ids, with a sentinel in place of each hole.

`A photo of a cat` becomes `a photo of a cat`, and `Image of a <mask>: <image:x.png>` becomes
`Image of a m0: <break> I…`. Several masks follow in the order of their places, as in training.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from cm3jax.errors import UserError
from cm3jax.generation.prompts import Segments, Shown
from cm3jax.sequence.document import Mark
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Bool, RgbImage
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class PictureHole:
    """A masked part of an image."""

    codes: tuple[int | None, ...]
    """Ids of the run, None where one is masked."""
    before: list[int]
    """Ids of the image before the run."""
    after: list[int]
    image: RgbImage
    mask: Bool[np.ndarray, "Y X"]
    """The pixels to draw again; those outside are taken from `image`."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Segments as ids, with a sentinel for each hole."""

    ids: list[int]
    holes: list[PictureHole | None]
    """In order of position: number i is sentinel i. None is a masked text."""


def render_rows(
    prompts: Sequence[Segments], text: TextTokenizer, image: ImageTokenizer, vocab: Vocab
) -> list[Row]:
    """Ids of prompts, a `<break>` between two segments; all images are encoded together."""
    shown = [s.blanked for segments in prompts for s in segments if isinstance(s, Shown)]
    codes = iter((image.encode(shown) + vocab.first_image).tolist() if shown else [])
    return [_row(segments, codes, text, vocab) for segments in prompts]


def _row(segments: Segments, codes: Iterator[list[int]], text: TextTokenizer, vocab: Vocab) -> Row:
    ids: list[int] = []
    holes: list[PictureHole | None] = []

    def mark(hole: PictureHole | None) -> int:
        if len(holes) == vocab.config.sentinels:
            raise UserError(f"a prompt can have {vocab.config.sentinels} masks; this one has more.")
        holes.append(hole)
        return vocab.sentinel(len(holes) - 1)

    for segment in segments:
        if ids:
            ids.append(vocab.break_)
        if isinstance(segment, tuple):
            for part in segment:
                ids += [mark(None)] if part is Mark.MASK else _text_ids(part, text, vocab)
        elif segment.hole is None:
            ids += next(codes)
        else:
            hole = _picture_hole(segment.image, segment.hole, next(codes), vocab)
            ids += [*hole.before, mark(hole), *hole.after]
    return Row(ids, holes)


def _text_ids(text: str, tokenizer: TextTokenizer, vocab: Vocab) -> list[int]:
    """Vocabulary ids of a text; `UserError` if there is none."""
    if not text.strip():
        raise UserError("a prompt is empty; write what the image shows.")
    return [vocab.first_text + piece for piece in tokenizer.encode(text)]


def _picture_hole(
    image: RgbImage, mask: Bool[np.ndarray, "Y X"], codes: list[int], vocab: Vocab
) -> PictureHole:
    run = raster_run(mask, vocab.config.grid)
    inside = zip(codes[run.start : run.stop], run.masked, strict=True)
    known = tuple(None if masked else code for code, masked in inside)
    return PictureHole(known, codes[: run.start], codes[run.stop :], image, mask)


@dataclasses.dataclass(frozen=True)
class Run:
    """A stretch of an image's codes in raster order, from the first masked one to the last."""

    start: int
    stop: int
    masked: list[bool]
    """Which codes of it are masked; the others are known."""


def raster_run(mask: Bool[np.ndarray, "Y X"], grid: int) -> Run:
    """The run of a mask of pixels over `grid` x `grid` codes; one masked pixel masks its code.

    One run, however odd the mask: a span per row of codes is something that training never shows.
    Raises `UserError` for a mask without pixels.
    """
    if not mask.any():
        raise UserError("the mask covers no pixel of the image; mark what to draw again.")
    height, width = mask.shape
    masked = mask.reshape(grid, height // grid, grid, width // grid).any((1, 3)).ravel()
    first, last = np.flatnonzero(masked)[[0, -1]].tolist()
    return Run(first, last + 1, masked[first : last + 1].tolist())
