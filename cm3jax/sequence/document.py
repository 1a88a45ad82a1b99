"""A document: text and image segments, the ids they render to, and the prompt notation.

    Document((Text(pieces), Image(codes)))  <->  pieces... <break> codes...        (section 2.1)

Text pieces and image codes are numbered from 0 within their own tokenizer; only `render` and
`parse` know where the vocabulary puts them.
"""

import dataclasses
import enum
import re
from collections.abc import Sequence

import numpy as np

from cm3jax.errors import UserError
from cm3jax.io.texts import brief
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import Int


@dataclasses.dataclass(frozen=True)
class Text:
    """Text pieces of one segment, in order; at least one."""

    pieces: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Image:
    """The codes of one image, row-major; as many as the vocabulary says."""

    codes: tuple[int, ...]


Segment = Text | Image
DocumentSegments = tuple[Segment, ...]


def render(document: DocumentSegments, vocab: Vocab) -> Int[np.ndarray, " L"]:
    """Ids of a document: its segments with one `<break>` between two, int32.

    Raises `ValueError` on an empty segment, a code or piece outside its tokenizer, or an image
    with another number of codes than `vocab.image_tokens`.
    """
    parts: list[np.ndarray] = []
    for segment in document:
        if isinstance(segment, Image):
            values, base, limit = segment.codes, vocab.first_image, vocab.config.image_codes
            if len(values) != vocab.image_tokens:
                raise ValueError(f"an image has {vocab.image_tokens} codes, this one {len(values)}")
        else:
            values, base, limit = segment.pieces, vocab.first_text, vocab.config.text_pieces
        array = np.asarray(values, np.int32)
        if not len(array) or array.min() < 0 or array.max() >= limit:
            raise ValueError(f"a segment is empty or has values outside 0..{limit - 1}")
        if parts:
            parts.append(np.asarray([vocab.break_], np.int32))
        parts.append(array + np.int32(base))
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def parse(ids: Sequence[int] | Int[np.ndarray, " L"], vocab: Vocab) -> DocumentSegments:
    """The document whose `render` is `ids`; `ValueError` when there is none."""
    ids = np.asarray(ids, np.int32)
    if not len(ids):
        return ()
    segments: list[Segment] = []
    breaks = np.flatnonzero(ids == vocab.break_)
    for start, stop in zip([0, *(breaks + 1)], [*breaks, len(ids)], strict=True):
        part = ids[start:stop]
        kinds = set(vocab.modality(part).tolist())
        if kinds == {int(Modality.IMAGE)} and len(part) == vocab.image_tokens:
            segments.append(Image(tuple((part - vocab.first_image).tolist())))
        elif kinds == {int(Modality.TEXT)}:
            segments.append(Text(tuple((part - vocab.first_text).tolist())))
        else:
            names = " ".join(vocab.name(int(i)) for i in part[:8])
            raise ValueError(f"not a text or a whole image: {names}{' …' if len(part) > 8 else ''}")
    return tuple(segments)


@dataclasses.dataclass(frozen=True)
class ImagePath:
    """`<image:PATH>` in a prompt: an image to read from a file."""

    path: str


class Mark(enum.Enum):
    """A control mark in a prompt, never plain text."""

    BREAK = "<break>"
    MASK = "<mask>"
    INFILL = "<infill>"


PromptPart = str | ImagePath | Mark
_NOTATION = re.compile(r"(<image:[^<>]+>|<break>|<mask>|<infill>)")


def parse_prompt(prompt: str) -> tuple[PromptPart, ...]:
    """Split a prompt into texts, images and marks.

    The notation holds only in prompts: in captions and answers the same strings are plain text.
    Text is kept as written, without the white space around it; empty text between marks vanishes.
    Raises `UserError` for a prompt with nothing in it, and for one that is not UTF-8.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"the prompt {brief(prompt)} is not UTF-8; write it in UTF-8.") from None
    parts: list[PromptPart] = []
    for piece in _NOTATION.split(prompt):
        if piece.startswith("<image:") and _NOTATION.fullmatch(piece):
            parts.append(ImagePath(piece[len("<image:") : -1].strip()))
        elif _NOTATION.fullmatch(piece):
            parts.append(Mark(piece))
        elif piece.strip():
            parts.append(piece.strip())
    if not parts:
        raise UserError("the prompt is empty; write a text, an <image:PATH>, or both.")
    return tuple(parts)
