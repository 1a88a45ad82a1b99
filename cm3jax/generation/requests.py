"""What is asked of the model: documents and a prompt become a request, its answer is read back.

Prompts take the form that training rows have: `<eos>`, documents with a `<break>` after each, the
query, and for what a mask hides `<eos>` and the mask's sentinel. The unconditional stream is what
training knows: the documents, and the query's text under a mask.
"""

import dataclasses
from collections.abc import Callable, Sequence, Sized

import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode.grammar import Codes, Fixed, Free, Interleaved, Program, Words
from cm3jax.decode.request import Guide, Request
from cm3jax.errors import UserError
from cm3jax.generation.prompts import PictureHole, Row, Segments, Shown, render_rows
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Mark
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import Int, UInt8
from cm3jax.tasks.editing import EDITING
from cm3jax.tasks.task import ANSWER, fill
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

Document = Retrieved | Int[np.ndarray, " _"]
"""A document in front of a prompt: from the bank, or any other's vocabulary ids."""
Documents = Sequence[Sequence[Document]]
"""The documents of each prompt, in the order shown."""
Picture = UInt8[np.ndarray, "Y X 3"]
"""A picture of the image tokenizer's size."""


@dataclasses.dataclass(frozen=True)
class BrokenImage:
    """A picture that the model ended early or late, which only happens without a grammar."""

    length: int
    """How many codes it has."""


@dataclasses.dataclass(frozen=True)
class PromptRequest:
    """A request, the documents in it, and how its answer is read."""

    request: Request
    documents: tuple[Document, ...]
    holes: tuple[PictureHole | None, ...] | None
    """What fills each slot of the program that is not fixed: the hole of a picture, or None for a
    text or a new picture. None: the answer is a document of its own."""


class RequestBuilder:
    """Builds asks of a decoder; `room` says how many tokens may follow a prompt of so many."""

    def __init__(
        self,
        vocab: Vocab,
        text: TextTokenizer,
        image: ImageTokenizer,
        room: Callable[[int], int],
    ):
        self.vocab, self.text, self.image, self.room = vocab, text, image, room

    def pictures(
        self,
        prompts: Sequence[Segments],
        documents: Documents | None,
        prompt_ids: Sequence[int] | None,
        config: DecodeConfig,
    ) -> list[PromptRequest]:
        """A picture after each prompt, guided."""
        new = self.vocab.image_tokens
        program = (Codes((None,) * new),)
        rows = self._rows(prompts)
        asks = []
        for row, mine, name in zip(rows, *_company(rows, documents, prompt_ids), strict=True):
            front = self._front(mine)
            prefix = self._prompt(front, row)
            guides = self._guides(front, config)
            if config.grammar:
                asks.append(self._ask(prefix, guides, program, name, mine, (None,)))
            else:
                room = self.room(len(prefix))
                free = (Free(max(2, min(new + config.max_text_tokens, room))),)
                asks.append(self._ask(prefix, guides, free, name, mine, None))
        return asks

    def stories(
        self,
        prompts: Sequence[Segments],
        documents: Documents | None,
        prompt_ids: Sequence[int] | None,
        config: DecodeConfig,
    ) -> list[PromptRequest]:
        """More of each document: texts and pictures as the model likes, guided."""
        rows = self._rows(prompts)
        asks = []
        for row, mine, name in zip(rows, *_company(rows, documents, prompt_ids), strict=True):
            front = self._front(mine)
            prefix = self._prompt(front, row)
            room = max(2, self.room(len(prefix)))
            limit = min(config.max_document_tokens or room, room)
            program = (Interleaved(limit) if config.grammar else Free(limit),)
            guides = self._guides(front, config)
            asks.append(self._ask(prefix, guides, program, name, mine, None))
        return asks

    def edits(
        self,
        images: UInt8[np.ndarray, "B Y X 3"] | Sequence[Picture],
        instructions: Sequence[str],
        documents: Documents | None,
        prompt_ids: Sequence[int] | None,
        config: DecodeConfig,
    ) -> list[PromptRequest]:
        """Each picture as its instruction says, asked for by the template of instruction tuning;
        guided by both, in three streams (section 4), or by none where both scales are 1.

        The second stream has seen all but the instruction, the third nothing.
        """
        pairs = [edit_segments(*pair) for pair in zip(images, instructions, strict=True)]
        rows = self._rows([segments for pair in pairs for segments in pair])
        whole, bare = rows[::2], rows[1::2]
        program = (Codes((None,) * self.vocab.image_tokens),)
        asks = []
        company = _company(whole, documents, prompt_ids)
        for row, without, mine, name in zip(whole, bare, *company, strict=True):
            front = self._front(mine)
            streams = (self._prompt(front, without), self._blind(front))
            guides = tuple(
                Guide(np.asarray(ids, np.int32), scale)
                for ids, scale in zip(streams, config.edit_scales, strict=True)
            )
            guides = () if set(config.edit_scales) == {1} else guides
            prefix = self._prompt(front, row)
            asks.append(self._ask(prefix, guides, program, name, mine, (None,)))
        return asks

    def fillings(
        self,
        prompts: Sequence[Segments],
        documents: Documents | None,
        prompt_ids: Sequence[int] | None,
        config: DecodeConfig,
    ) -> list[PromptRequest]:
        """What is under the masks of each prompt, at least one, in the order of their places."""
        rows = self._rows(prompts)
        asks = []
        for row, mine, name in zip(rows, *_company(rows, documents, prompt_ids), strict=True):
            prefix = [*self._front(mine), *row.ids, self.vocab.eos, self.vocab.sentinel(0)]
            holes = tuple(h if isinstance(h, PictureHole) else None for h in row.holes)
            asks.append(self._ask(prefix, (), self._spans(holes, config), name, mine, holes))
        return asks

    def _spans(self, holes: tuple[PictureHole | None, ...], config: DecodeConfig) -> Program:
        """Each hole's ids; from the second on after the sentinel, as the tail of a training row."""
        program: list = []
        for number, hole in enumerate(holes):
            if number:
                # A text brings its own end.
                end = [self.vocab.eoss] * isinstance(holes[number - 1], PictureHole)
                program.append(Fixed((*end, self.vocab.sentinel(number))))
            program.append(
                Words(config.max_text_tokens) if hole is None else Codes(tuple(hole.codes))
            )
        return tuple(program)

    def _rows(self, prompts: Sequence[Segments]) -> list[Row]:
        return render_rows(prompts, self.text, self.image, self.vocab)

    def _front(self, documents: Sequence[Document]) -> list[int]:
        front = [self.vocab.eos]
        for document in documents:
            ids = document.ids if isinstance(document, Retrieved) else np.asarray(document)
            front += [*ids.tolist(), self.vocab.break_]
        return front

    def _prompt(self, front: list[int], row: Row) -> list[int]:
        """What the model has seen when something new begins."""
        return [*front, *row.ids, self.vocab.break_]

    def _blind(self, front: list[int]) -> list[int]:
        """The same for the unconditional stream."""
        return [*front, self.vocab.sentinel(0), self.vocab.break_]

    def _guides(self, front: list[int], config: DecodeConfig) -> tuple[Guide, ...]:
        """The unconditional stream, where a scale of 1 does not make it idle."""
        if config.guidance_scale == 1 and config.contrast == "none":
            return ()
        return (Guide(np.asarray(self._blind(front), np.int32), config.guidance_scale),)

    def _ask(self, prefix, guides, program, name, documents, holes) -> PromptRequest:
        ids = np.asarray(prefix, np.int32)
        return PromptRequest(Request(ids, guides, program, int(name)), tuple(documents), holes)


class CaptionAsker(RequestBuilder):
    """Builds asks of an encoder-decoder, which reads one caption and draws one picture.

    A prompt is the caption with its `<eos>`, and the `<eos>` that starts the picture; without a
    caption these two stand alone, as in training (`data.pairs`).
    """

    def fillings(self, prompts: Sized, *rest) -> list[PromptRequest]:
        """Refused, as are stories and edits."""
        if len(prompts):
            raise UserError("an encoder-decoder draws pictures of texts alone; give it one.")
        return []

    stories = edits = fillings

    def _front(self, documents: Sequence[Document]) -> list[int]:
        if documents:
            raise UserError("an encoder-decoder reads no documents; ask for none.")
        return []

    def _prompt(self, front: list[int], row: Row) -> list[int]:
        if min(row.ids) < self.vocab.first_text:
            self.fillings([row])
        return [*row.ids, *self._blind(front)]

    def _blind(self, front: list[int]) -> list[int]:
        return [self.vocab.eos] * 2


def edit_segments(image: Picture, instruction: str) -> tuple[Segments, Segments]:
    """The prompt of an edit as `tasks.editing` has it, and the same without its instruction."""
    values = {"image": image, "instruction": instruction, ANSWER: "the new picture"}
    parts, answer = fill(EDITING.templates[0], values)
    before = [part for part in parts[: answer.start] if part is not Mark.BREAK]
    whole = tuple((part,) if isinstance(part, str) else Shown(part) for part in before)
    return whole, whole[:-1]  # the instruction stands last


def _company(
    rows: Sequence[Row], documents: Documents | None, prompt_ids: Sequence[int] | None
) -> tuple[Documents, Sequence[int]]:
    """The documents and the name of each prompt; without any, none and its place."""
    shown = [()] * len(rows) if documents is None else documents
    return shown, range(len(rows)) if prompt_ids is None else prompt_ids


Part = str | BrokenImage | Int[np.ndarray, " codes"]
"""A text, a broken picture, or the codes of a whole one, from 0."""


def read_answer(
    ask: PromptRequest, ids: Int[np.ndarray, " T"], asker: RequestBuilder
) -> list[Part]:
    """The segments of an answer; a picture's holes are closed."""
    if ask.holes is None:
        return _segments(ids, asker)
    return _fillings(ask, ids, asker)


def _fillings(ask: PromptRequest, ids: np.ndarray, asker: RequestBuilder) -> list[Part]:
    vocab, out, here = asker.vocab, [], 0
    holes = iter(ask.holes)
    for slot in ask.request.program:
        if isinstance(slot, Fixed):
            here += len(slot.ids)
            continue
        hole = next(holes)
        if isinstance(slot, Words):
            stop = here + int(np.argmax(ids[here:] == vocab.eoss))
            out.append(to_text(ids[here:stop], asker))
            here = stop + 1
            continue
        codes = ids[here : here + len(slot.ids)]
        here += len(slot.ids)
        if hole is not None:
            codes = np.asarray([*hole.before, *codes.tolist(), *hole.after])
        out.append(codes - vocab.first_image)
    return out


def _segments(ids: np.ndarray, asker: RequestBuilder) -> list[Part]:
    """What stands between the `<break>`s up to the first `<eos>`."""
    vocab = asker.vocab
    if vocab.eos in ids:
        ids = ids[: int(np.argmax(ids == vocab.eos))]
    cuts = np.flatnonzero(ids == vocab.break_)
    out: list[Part] = []
    for part in np.split(ids, cuts):
        part = part[part != vocab.break_]
        codes = part[vocab.modality(part) == Modality.IMAGE]
        if len(codes) == len(part) == vocab.image_tokens:
            out.append(codes - vocab.first_image)
        elif len(codes):
            out.append(BrokenImage(len(codes)))
        elif len(part):
            out.append(to_text(part, asker))
    return out


def to_text(ids: Int[np.ndarray, " L"], asker: RequestBuilder) -> str:
    """The text of the pieces among these ids."""
    pieces = ids[ids >= asker.vocab.first_text] - asker.vocab.first_text
    return asker.text.decode(pieces.tolist())
