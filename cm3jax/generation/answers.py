"""Answers of the decoding engine as people meet them: ids become texts, codes become images."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np

from cm3jax.decode import loop
from cm3jax.decode.grammar import Codes, Fixed, Program, Words
from cm3jax.generation.display import ImageArray, segments_html
from cm3jax.generation.rendering import PictureHole
from cm3jax.generation.requests import PromptRequest, ShownDocument
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import Int, RgbImage
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class BrokenImage:
    """An image that the model ended early or late, which only happens without a grammar."""

    length: int
    """How many codes it has."""


AnswerPart = str | BrokenImage | RgbImage
"""A text, or a uint8 image of the image tokenizer's size."""


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """One sample and how it came about; a notebook shows it."""

    segments: tuple[AnswerPart, ...]
    """What was asked for: an image or a text, a story's texts and images, or what filled each
    mask, in order."""
    documents: tuple[ShownDocument, ...]
    """The documents that the model saw."""
    prefix: Int[np.ndarray, " L"]
    """All ids that the model saw, documents among them."""
    ids: Int[np.ndarray, " T"]
    """The ids that it emitted."""
    logprob: float
    """Their log-probability (`decode.loop.Sample`)."""
    sampled: int
    """How many of them were sampled, not forced."""
    temperature: float
    """The temperature of this sample."""
    prompt_id: int
    sample_id: int

    @property
    def image(self) -> ImageArray | None:
        """The first image: a uint8 array that a notebook shows and `.save(PATH)` writes."""
        found = next((s for s in self.segments if isinstance(s, np.ndarray)), None)
        return None if found is None else found.view(ImageArray)

    @property
    def text(self) -> str | None:
        """The first text."""
        return next((s for s in self.segments if isinstance(s, str)), None)

    @property
    def perplexity(self) -> float:
        """Perplexity of the sampled ids."""
        return float(np.exp(-self.logprob / max(1, self.sampled)))

    def _repr_html_(self) -> str:
        named = [f"{d.key} ({d.score:.2f})" for d in self.documents if isinstance(d, Retrieved)]
        given = len(self.documents) - len(named)
        after = [*([f"{given} given"] if given else []), *named]
        caption = f"after {', '.join(after)}" if after else "without documents"
        return segments_html(self.segments, f"{caption}; perplexity {self.perplexity:.3g}")


def image_of(sample: Generated) -> ImageArray:
    """The first image of a sample that was to have one; `ValueError` where it has none."""
    if sample.image is None:
        raise ValueError("a sample has no image; only decode.grammar makes sure of one")
    return sample.image


Answers = list[tuple[int, Generated]]
"""Samples that were done together, each with the place of its request."""
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Undecoded(Generic[T]):
    """Something that lacks only the images of some codes, which may be decoded with others."""

    codes: Sequence[Int[np.ndarray, " codes"]]
    """The codes of each image, from 0."""
    then: Callable[[Sequence[RgbImage]], T]
    """What it is, with the images of these codes."""


class AnswerReader:
    """Reads what the engine emitted for requests, with the tokenizers that made them."""

    def __init__(self, vocab: Vocab, text: TextTokenizer, image: ImageTokenizer):
        self._vocab, self._text, self._image = vocab, text, image

    def read(self, requests: Sequence[PromptRequest], finished: list[loop.Finished]) -> Answers:
        """The samples that are finished; all their images are decoded together."""
        left = self.undecoded(requests, finished)
        return left.then(list(self._image.decode(np.asarray(left.codes))) if left.codes else [])

    def undecoded(
        self, requests: Sequence[PromptRequest], finished: list[loop.Finished]
    ) -> Undecoded[Answers]:
        """The samples that are finished, except for their images."""
        found = [
            (done.request, done.first + offset, sample, requests[done.request])
            for done in finished
            for offset, sample in enumerate(done.samples)
        ]
        parts = [self.parts(request, sample.ids) for _, _, sample, request in found]
        codes = [part for each in parts for part in each if isinstance(part, np.ndarray)]

        def then(decoded: Sequence[RgbImage]) -> Answers:
            images = iter(decoded)
            return [
                (
                    index,
                    Generated(
                        segments=_pictured(request, each, images),
                        documents=request.documents,
                        prefix=request.prefix,
                        prompt_id=request.prompt_id,
                        sample_id=number,
                        **vars(sample),
                    ),
                )
                for (index, number, sample, request), each in zip(found, parts, strict=True)
            ]

        return Undecoded(codes, then)

    def parts(
        self, request: PromptRequest, ids: Int[np.ndarray, " T"]
    ) -> list[str | BrokenImage | Int[np.ndarray, " codes"]]:
        """The segments of an answer, images as their codes, from 0; an image's hole is closed
        by the codes around it."""
        if request.holes is None:
            return self._document(ids)
        return self._fillings(request.program, request.holes, ids)

    def text(self, ids: Int[np.ndarray, " L"]) -> str:
        """The text of the pieces among these ids."""
        pieces = ids[ids >= self._vocab.first_text] - self._vocab.first_text
        return self._text.decode(pieces.tolist())

    def describe(self, ids: Int[np.ndarray, " L"]) -> str:
        """Ids with readable names, texts in quotes."""
        names: list[str] = []
        for is_text, group in groupby(ids.tolist(), lambda i: i >= self._vocab.first_text):
            part = list(group)
            if is_text:
                names.append(repr(self.text(np.asarray(part))))
            else:
                names += map(self._vocab.name, part)
        return " ".join(names)

    def _fillings(
        self, program: Program, holes: Sequence[PictureHole | None], ids: np.ndarray
    ) -> list[str | BrokenImage | np.ndarray]:
        """What fills each slot of a program that is not fixed."""
        out: list[str | BrokenImage | np.ndarray] = []
        here, left = 0, iter(holes)
        for slot in program:
            if isinstance(slot, Fixed):
                here += len(slot.ids)
            elif isinstance(slot, Words):
                next(left)
                stop = here + int(np.argmax(ids[here:] == self._vocab.eoss))
                out.append(self.text(ids[here:stop]))
                here = stop + 1
            elif isinstance(slot, Codes):
                hole = next(left)
                codes = ids[here : here + len(slot.ids)]
                here += len(slot.ids)
                if hole is not None:
                    codes = np.asarray([*hole.before, *codes.tolist(), *hole.after])
                out.append(codes - self._vocab.first_image)
        return out

    def _document(self, ids: np.ndarray) -> list[str | BrokenImage | np.ndarray]:
        """The parts between the `<break>`s up to the first `<eos>`."""
        vocab = self._vocab
        if vocab.eos in ids:
            ids = ids[: int(np.argmax(ids == vocab.eos))]
        out: list[str | BrokenImage | np.ndarray] = []
        for part in np.split(ids, np.flatnonzero(ids == vocab.break_)):
            part = part[part != vocab.break_]
            codes = part[vocab.modality(part) == Modality.IMAGE]
            if len(codes) == len(part) == vocab.image_tokens:
                out.append(codes - vocab.first_image)
            elif len(codes):
                out.append(BrokenImage(len(codes)))
            elif len(part):
                out.append(self.text(part))
        return out


def _pictured(
    request: PromptRequest,
    parts: Sequence[str | BrokenImage | np.ndarray],
    images: Iterator[RgbImage],
) -> tuple[AnswerPart, ...]:
    """Parts with images in place of codes; pixels outside of holes are those of before."""
    holes = (None,) * len(parts) if request.holes is None else request.holes
    out: list[AnswerPart] = []
    for part, hole in zip(parts, holes, strict=True):
        if isinstance(part, np.ndarray):
            part = next(images)
            if hole is not None:
                part = np.where(hole.mask[..., None], part, hole.image)
        out.append(part)
    return tuple(out)
