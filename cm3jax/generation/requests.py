"""Prompts and their documents become requests of the decoding engine.

Requests take the form that training rows have: `<eos>`, documents with a `<break>` after each, the
query, and for what a mask hides `<eos>` and the mask's sentinel:

    an image of a text     <eos> a photo of a cat <break>                     then its codes
    the text under a mask  <eos> Image of a m0: <break> I1 … <eos> m0         then a text and <eoss>
    several masks          <eos> m0 <break> I1 m1 I4 <eos> m0                 then a text, m1, codes

The unconditional stream is what training knows: the documents, and the query's text under a mask.
`answers.py` reads what comes back.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode.grammar import Codes, Fixed, Free, Interleaved, Program, Words
from cm3jax.decode.request import Guide, Request
from cm3jax.errors import UserError
from cm3jax.generation.prompts import Prompt, Segments, Shown, Wanted
from cm3jax.generation.rendering import PictureHole, Row, render_rows
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Mark
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int
from cm3jax.tasks.editing import EDITING
from cm3jax.tasks.task import ANSWER, fill
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

ShownDocument = Retrieved | Int[np.ndarray, " _"]
"""A document in front of a prompt: one of the bank, or the vocabulary ids of any other."""
ShownDocuments = Sequence[Sequence[ShownDocument]]
"""The documents of each prompt, in the order shown."""


@dataclasses.dataclass(frozen=True, eq=False)
class PromptRequest(Request):
    """A request with the documents in it, and with how its answer is read."""

    documents: tuple[ShownDocument, ...]
    holes: tuple[PictureHole | None, ...] | None
    """What fills each slot of the program that is not fixed: the hole of an image, or None for a
    text or a new image. None: the answer is a document of its own."""


@dataclasses.dataclass(frozen=True)
class _Question:
    """A request before it has a name: what is read, what guides, what follows, how it is read."""

    prefix: list[int]
    guides: tuple[Guide, ...]
    program: Program
    holes: tuple[PictureHole | None, ...] | None


class RequestBuilder:
    """Builds requests of a decoder; `room` gives how many tokens may follow a prompt's."""

    def __init__(
        self,
        vocab: Vocab,
        text: TextTokenizer,
        image: ImageTokenizer,
        room: Callable[[int], int],
    ):
        self.vocab, self.text, self.image, self.room = vocab, text, image, room

    def build(
        self,
        prompts: Sequence[Prompt],
        config: DecodeConfig,
        documents: ShownDocuments | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[PromptRequest]:
        """The request of each prompt, after its documents, in the prompts' order.

        `prompt_ids` name the prompts' noise, by default their places do. Raises `UserError` for a
        prompt that is empty or has too many masks, and for what the model can't read.
        """
        shown = [()] * len(prompts) if documents is None else documents
        names = range(len(prompts)) if prompt_ids is None else prompt_ids
        asked = list(zip(prompts, shown, names, strict=True))
        out: dict[int, PromptRequest] = {}
        for place, rows in self._rendered(prompts):
            prompt, mine, name = asked[place]
            question = self._question(prompt.wanted, self._front(mine), rows, config)
            out[place] = PromptRequest(
                prefix=np.asarray(question.prefix, np.int32),
                guides=question.guides,
                program=question.program,
                prompt_id=int(name),
                documents=tuple(mine),
                holes=question.holes,
            )
        return [out[place] for place in range(len(prompts))]

    def _rendered(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Row]]]:
        """The place of each prompt and its rows: two for an edit, with its instruction and without.

        Images of prompts of one kind are encoded together.
        """
        groups: dict[Wanted, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt.wanted, []).append(place)
        for places in groups.values():
            segments = [_segments(prompts[place]) for place in places]
            every = [one for each in segments for one in each]
            rows = iter(render_rows(every, self.text, self.image, self.vocab))
            for place, each in zip(places, segments, strict=True):
                yield place, [next(rows) for _ in each]

    def _question(
        self, wanted: Wanted, front: list[int], rows: list[Row], config: DecodeConfig
    ) -> _Question:
        match wanted:
            case Wanted.PICTURE:
                return self._picture(front, rows[0], config)
            case Wanted.MASKED:
                return self._masked(front, rows[0], config)
            case Wanted.EDIT:
                return self._edit(front, rows, config)
            case Wanted.DOCUMENT:
                return self._document(front, rows[0], config)

    def _picture(self, front: list[int], row: Row, config: DecodeConfig) -> _Question:
        """An image, guided."""
        prefix, guides = self._prompt(front, row), self._guides(front, config)
        new = self.vocab.image_tokens
        if config.grammar:
            return _Question(prefix, guides, (Codes((None,) * new),), (None,))
        room = self.room(len(prefix))
        limit = max(2, min(new + config.max_text_tokens, room))
        return _Question(prefix, guides, (Free(limit),), None)

    def _document(self, front: list[int], row: Row, config: DecodeConfig) -> _Question:
        """More of the document: texts and images as the model likes, guided."""
        prefix, guides = self._prompt(front, row), self._guides(front, config)
        room = max(2, self.room(len(prefix)))
        limit = min(config.max_document_tokens or room, room)
        program = (Interleaved(limit) if config.grammar else Free(limit),)
        return _Question(prefix, guides, program, None)

    def _edit(self, front: list[int], rows: list[Row], config: DecodeConfig) -> _Question:
        """An image as the instruction says, asked for by the template of instruction tuning;
        guided by both, in three streams (section 4), or by none where both scales are 1.

        The second stream has seen all but the instruction, the third nothing.
        """
        row, bare = rows
        streams = (self._prompt(front, bare), self._blind(front))
        guides = tuple(
            Guide(np.asarray(ids, np.int32), scale)
            for ids, scale in zip(streams, config.edit_scales, strict=True)
        )
        guides = () if set(config.edit_scales) == {1} else guides
        program = (Codes((None,) * self.vocab.image_tokens),)
        return _Question(self._prompt(front, row), guides, program, (None,))

    def _masked(self, front: list[int], row: Row, config: DecodeConfig) -> _Question:
        """What is under the masks, at least one, in the order of their places."""
        prefix = [*front, *row.ids, self.vocab.eos, self.vocab.sentinel(0)]
        return _Question(prefix, (), self._spans(row.holes, config), tuple(row.holes))

    def _spans(self, holes: Sequence[PictureHole | None], config: DecodeConfig) -> Program:
        """The slots of all holes, as in the tail of a training row: each but the first begins with
        its sentinel."""
        program: list = []
        for number, hole in enumerate(holes):
            if number:
                # A text brings its own end.
                end = [self.vocab.eoss] * (holes[number - 1] is not None)
                program.append(Fixed((*end, self.vocab.sentinel(number))))
            program.append(
                Words(config.max_text_tokens) if hole is None else Codes(tuple(hole.codes))
            )
        return tuple(program)

    def _front(self, documents: Sequence[ShownDocument]) -> list[int]:
        front = [self.vocab.eos]
        for document in documents:
            ids = document.ids if isinstance(document, Retrieved) else np.asarray(document)
            front += [*ids.tolist(), self.vocab.break_]
        return front

    def _prompt(self, front: list[int], row: Row) -> list[int]:
        """What the model has seen when something new begins."""
        return [*front, *row.ids, self.vocab.break_]

    def _blind(self, front: list[int]) -> list[int]:
        """What the unconditional stream has seen then."""
        return [*front, self.vocab.sentinel(0), self.vocab.break_]

    def _guides(self, front: list[int], config: DecodeConfig) -> tuple[Guide, ...]:
        """The unconditional stream, where a scale of 1 does not make it idle."""
        if config.guidance_scale == 1 and config.contrast == "none":
            return ()
        return (Guide(np.asarray(self._blind(front), np.int32), config.guidance_scale),)


class CaptionRequestBuilder(RequestBuilder):
    """Builds requests of an encoder-decoder, which reads one caption and draws one image.

    A prompt is the caption with its `<eos>`, and the `<eos>` that starts the image; without a
    caption only these two, as in training (`data.caption_image`).
    """

    def build(
        self,
        prompts: Sequence[Prompt],
        config: DecodeConfig,
        documents: ShownDocuments | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[PromptRequest]:
        """As `RequestBuilder.build`; `UserError` for documents, and for all but one plain text."""
        if not all(map(_is_plain_text, prompts)):
            raise UserError("an encoder-decoder draws only images of texts; give it one text.")
        return super().build(prompts, config, documents, prompt_ids)

    def _front(self, documents: Sequence[ShownDocument]) -> list[int]:
        if documents:
            raise UserError("an encoder-decoder reads no documents; ask for none.")
        return []

    def _prompt(self, front: list[int], row: Row) -> list[int]:
        return [*row.ids, *self._blind(front)]

    def _blind(self, front: list[int]) -> list[int]:
        return [self.vocab.eos] * 2


def _is_plain_text(prompt: Prompt) -> bool:
    """Whether an image of one text without masks is asked for."""
    first, *more = prompt.segments
    plain = isinstance(first, tuple) and not more and Mark.MASK not in first
    return plain and prompt.wanted is Wanted.PICTURE


def _segments(prompt: Prompt) -> tuple[Segments, ...]:
    """The segments that are read for a prompt; of an edit also without its instruction."""
    if prompt.wanted is not Wanted.EDIT:
        return (prompt.segments,)
    return _edit_segments(prompt)


def _edit_segments(prompt: Prompt) -> tuple[Segments, Segments]:
    """The prompt of an edit as `tasks.editing` has it, and the same without its instruction."""
    instruction = prompt.words or ""
    values = {"image": prompt.picture, "instruction": instruction, ANSWER: "the new image"}
    parts, answer = fill(EDITING.templates[0], values)
    before = [part for part in parts[: answer.start] if isinstance(part, str | np.ndarray)]
    whole = tuple((part,) if isinstance(part, str) else Shown(part) for part in before)
    return whole, whole[:-1]  # the instruction comes last
