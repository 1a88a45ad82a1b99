"""Prompts as people write them: segments of text and images, and what is wanted of them.

`A photo of a cat` asks for an image, `Image of a <mask>: <image:x.png> <infill>` for the text
under its mask.
"""

import contextlib
import dataclasses
import enum
import io
from collections.abc import Iterable
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
from etils import epath

from cm3jax.errors import UserError
from cm3jax.sequence.document import ImagePath, Mark, PromptPart, parse_prompt
from cm3jax.shapes import Bool, RgbImage
from cm3jax.tokenizers.image_tokenizer import load_picture, preprocess

BLANK = 128
"""Grey that hides a hole from the image tokenizer."""

TextParts = tuple[str | Literal[Mark.MASK], ...]
"""A text segment: texts, and `Mark.MASK` where one is hidden."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """An image segment."""

    image: RgbImage
    hole: Bool[np.ndarray, "Y X"] | None = None
    """The pixels to draw again."""

    @property
    def blanked(self) -> RgbImage:
        """The image without what is in the hole, so that no code knows it."""
        if self.hole is None:
            return self.image
        return np.where(self.hole[..., None], np.uint8(BLANK), self.image)


Segments = tuple[TextParts | Shown, ...]
"""The segments of a document, in order."""


class Wanted(enum.Enum):
    """What a prompt asks for."""

    PICTURE = "a new image"
    MASKED = "what its masks hide"
    EDIT = "its image, changed as its text says"
    DOCUMENT = "texts and images, as the model likes"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A document and what is wanted of it."""

    segments: Segments
    wanted: Wanted

    @property
    def words(self) -> str | None:
        """Its texts, to search with."""
        texts = [part for s in self.segments if isinstance(s, tuple) for part in s]
        return " ".join(part for part in texts if isinstance(part, str)) or None

    @property
    def picture(self) -> RgbImage | None:
        """Its first image, to search with."""
        return next((s.image for s in self.segments if isinstance(s, Shown)), None)


def picture_prompt(text: str) -> Prompt:
    """Asks for an image of a plain text; marks of the notation are text in it."""
    return Prompt(((text,),), Wanted.PICTURE)


def caption_prompt(image: RgbImage) -> Prompt:
    """Asks for the text of an image: the text of the pair is masked."""
    return Prompt(((Mark.MASK,), Shown(image)), Wanted.MASKED)


def infill_prompt(caption: str, image: RgbImage, hole: Bool[np.ndarray, "Y X"]) -> Prompt:
    """Asks for the pixels of a hole in an image; without a caption only the image is read."""
    text: Segments = ((caption,),) if caption else ()
    return Prompt((*text, Shown(image, hole)), Wanted.MASKED)


def edit_prompt(image: RgbImage, instruction: str) -> Prompt:
    """Asks for an image as an instruction changes it."""
    return Prompt(((instruction,), Shown(image)), Wanted.EDIT)


def read_prompt(prompt: str, size: int) -> Prompt:
    """Read a prompt and the images it names, at `size` pixels a side.

    Text and image are segments of their own; a mask belongs to the text around it. Raises
    `UserError` for an image that can't be read, and for marks that ask for nothing: see
    `_require_sense`.
    """
    parts = parse_prompt(prompt)
    _require_sense(parts)
    wanted = Wanted.MASKED if Mark.INFILL in parts else Wanted.PICTURE
    return Prompt(_segments(parts, size, None), wanted)


def read_infill(prompt: str, size: int, hole: Bool[np.ndarray, "Y X"]) -> Prompt:
    """Read a prompt with one image, of which `hole` is to be drawn again; texts may have masks.

    Raises `UserError` for a prompt with no image or with several.
    """
    parts = parse_prompt(prompt)
    if sum(isinstance(part, ImagePath) for part in parts) != 1:
        raise UserError("infill takes one <image:PATH>, with a caption if you like, in quotes.")
    return Prompt(_segments(parts, size, hole), Wanted.MASKED)


def read_edit(prompt: str, size: int) -> Prompt:
    """Read an instruction with the image to change; `UserError` for anything else."""
    parts = parse_prompt(prompt)
    words = " ".join(part for part in parts if isinstance(part, str))
    paths = [part.path for part in parts if isinstance(part, ImagePath)]
    if len(paths) != 1 or not words or any(isinstance(part, Mark) for part in parts):
        raise UserError("edit takes an instruction and one <image:PATH>, in quotes.")
    return edit_prompt(load_picture(paths[0], size), words)


def load_mask(path: epath.PathLike, size: int) -> Bool[np.ndarray, "S S"]:
    """Which pixels an image file marks: the light ones.

    Where a part of it is transparent, the marked pixels are those that are not, whatever their
    colour: a brush paints on a layer of its own. Raises `UserError` as `load_picture`.
    """
    light = load_picture(path, size).mean(-1) >= 128
    with PIL.Image.open(io.BytesIO(epath.Path(path).read_bytes())) as opened:
        if not opened.has_transparency_data:
            return light
        image: PIL.Image.Image = opened
        with contextlib.suppress(Exception):  # a broken EXIF block says nothing of the pixels
            image = PIL.ImageOps.exif_transpose(opened)
        opacity = image.convert("RGBA").getchannel("A")
    if opacity.getextrema()[0] == 255:
        return light
    return preprocess(opacity, size).mean(-1) >= 128


def outpaint(prompt: Prompt, x: int, y: int, side: int) -> Prompt:
    """The prompt's images, made smaller and put at (x, y), with all around them to be drawn."""

    def place(shown: Shown) -> Shown:
        small = PIL.Image.fromarray(shown.image).resize((side, side), PIL.Image.Resampling.LANCZOS)
        canvas, hole = np.full_like(shown.image, BLANK), np.ones(shown.image.shape[:2], bool)
        inside = np.s_[y : y + side, x : x + side]
        canvas[inside], hole[inside] = np.asarray(small), False
        return Shown(canvas, hole)

    segments = tuple(place(s) if isinstance(s, Shown) else s for s in prompt.segments)
    return dataclasses.replace(prompt, segments=segments)


def segments_of(parts: Iterable[str | Mark | Shown]) -> Segments:
    """Images, and the texts between them with their masks; another mark only ends a text."""
    segments: list[TextParts | Shown] = []
    text: list[str | Literal[Mark.MASK]] = []
    for part in (*parts, None):
        if isinstance(part, str) or part is Mark.MASK:
            text.append(part)
            continue
        if text:
            segments.append(tuple(text))
            text = []
        if isinstance(part, Shown):
            segments.append(part)
    return tuple(segments)


def _segments(
    parts: tuple[PromptPart, ...], size: int, hole: Bool[np.ndarray, "Y X"] | None
) -> Segments:
    return segments_of(
        Shown(load_picture(part.path, size), hole) if isinstance(part, ImagePath) else part
        for part in parts
    )


def _require_sense(parts: tuple[PromptPart, ...]) -> None:
    """A prompt is recalled if it has masks and ends with `<infill>`, else it ends with text."""
    masks, infills = parts.count(Mark.MASK), parts.count(Mark.INFILL)
    if infills not in (masks, 1) or bool(masks) != bool(infills):
        raise UserError(
            f"the prompt has {masks} <mask> and {infills} <infill>; write one <infill> at the end "
            "for all masks, or none of both."
        )
    if infills and any(part is not Mark.INFILL for part in parts[-infills:]):
        raise UserError("<infill> marks where masked text follows; write it at the prompt's end.")
    last = [part for part in parts if not isinstance(part, Mark)][-1:]
    if not last:
        raise UserError("the prompt has only marks; write a text, an <image:PATH>, or both.")
    if not infills and isinstance(last[0], ImagePath):
        raise UserError(
            "the prompt ends with an image, which asks for nothing; for its caption write "
            "<mask> <image:PATH> <infill>."
        )
