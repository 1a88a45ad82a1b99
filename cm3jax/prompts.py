"""Prompts in the notation, read as the rows that training knows.

`A photo of a cat` becomes `… a photo of a cat <break>`, which a picture follows, and
`Image of a <mask>: <image:x.png> <infill>` becomes `Image of a m0: <break> I… <eos> m0`, which the
text under the mask follows.
"""

import dataclasses

import numpy as np

from cm3jax.document import ImagePath, Mark, PromptPart, parse_prompt
from cm3jax.errors import UserError
from cm3jax.shapes import Bool, UInt8
from cm3jax.tokenizers.image import ImageTokenizer, load_picture
from cm3jax.tokenizers.text import TextTokenizer
from cm3jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt that was read."""

    ids: list[int]
    """What follows `<eos>` and documents, up to where the model goes on."""
    recall: bool
    """Whether the text under the mask follows, rather than a picture."""
    words: str | None
    """Its texts, to search with."""
    picture: UInt8[np.ndarray, "Y X 3"] | None
    """Its first picture, uint8, to search with."""


def text_ids(text: str, tokenizer: TextTokenizer, vocab: Vocab) -> list[int]:
    """Vocabulary ids of a text; `UserError` if there is none."""
    if not text.strip():
        raise UserError("a prompt is empty; write what the picture shows.")
    return [vocab.first_text + piece for piece in tokenizer.encode(text)]


def read_prompt(prompt: str, text: TextTokenizer, image: ImageTokenizer, vocab: Vocab) -> Prompt:
    """Read a prompt and the pictures it names.

    Text and picture are segments of their own; a mask belongs to the text around it. Raises
    `UserError` for a picture that can't be read, and for marks that ask for nothing: see
    `_require_sense`.
    """
    parts = parse_prompt(prompt)
    _require_sense(parts)
    segments: list[list[int]] = []
    pictures, words = [], []
    in_text = False
    for part in parts:
        if part is Mark.BREAK or part is Mark.INFILL:
            in_text = False
        elif isinstance(part, ImagePath):
            in_text = False
            pictures.append(load_picture(part.path, image.config.image_size))
            codes = image.encode(pictures[-1][None])[0] + vocab.first_image
            segments.append(codes.tolist())
        else:
            if not in_text:
                segments.append([])
            in_text = True
            if part is Mark.MASK:
                segments[-1].append(vocab.sentinel(0))
            else:
                words.append(part)
                segments[-1] += text_ids(part, text, vocab)
    ids = segments[0]
    for segment in segments[1:]:
        ids = [*ids, vocab.break_, *segment]
    recall = Mark.INFILL in parts
    end = [vocab.eos, vocab.sentinel(0)] if recall else [vocab.break_]
    first = pictures[0] if pictures else None
    return Prompt([*ids, *end], recall, " ".join(words) or None, first)


@dataclasses.dataclass(frozen=True)
class Run:
    """A stretch of a picture's codes in raster order, from the first masked one to the last."""

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
        raise UserError("the mask covers no pixel of the picture; mark what to draw anew.")
    height, width = mask.shape
    masked = mask.reshape(grid, height // grid, grid, width // grid).any((1, 3)).ravel()
    first, last = np.flatnonzero(masked)[[0, -1]].tolist()
    return Run(first, last + 1, masked[first : last + 1].tolist())


def _require_sense(parts: tuple[PromptPart, ...]) -> None:
    """A prompt is recalled if it has one mask and ends with `<infill>`, else it ends with text."""
    masks, infills = parts.count(Mark.MASK), parts.count(Mark.INFILL)
    if masks != infills or masks > 1:
        raise UserError(
            f"the prompt has {masks} <mask> and {infills} <infill>; write one of each, or none."
        )
    if infills and parts[-1] is not Mark.INFILL:
        raise UserError("<infill> stands where the masked text shall follow: at the prompt's end.")
    last = [part for part in parts if not isinstance(part, Mark)][-1:]
    if not last:
        raise UserError("the prompt has marks alone; write a text, an <image:PATH>, or both.")
    if not infills and isinstance(last[0], ImagePath):
        raise UserError(
            "the prompt ends with a picture, which asks for nothing; for its caption write "
            "<mask> <image:PATH> <infill>."
        )
