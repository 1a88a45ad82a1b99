"""What a request asks of the generator: its prompt, its documents, how it is drawn.

A chat is one document: its messages' texts and images in order. What is asked of it, where no
`task` says so: the text under its `<mask>`s, the answer to a text with an image, the caption of an
image only, or more of the document.
"""

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.errors import UserError, nearest
from cm3jax.generation.documents import Document, retrieve_for
from cm3jax.generation.generator import Generator
from cm3jax.generation.prompts import (
    Prompt,
    Segments,
    Shown,
    Wanted,
    caption_prompt,
    edit_prompt,
    infill_prompt,
    picture_prompt,
    segments_of,
)
from cm3jax.generation.requests import ShownDocument
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import ImagePath, Mark, parse_prompt
from cm3jax.serve.drawing import ServedRequest
from cm3jax.serve.limits import Limits
from cm3jax.serve.media import decode_mask, decode_upload, from_base64
from cm3jax.serve.protocol import ChatBody, DocumentField, ImageBody, ImagePart, Message, Options
from cm3jax.shapes import RgbImage
from cm3jax.tasks import TASKS
from cm3jax.tasks.task import ANSWER, Task, fields, fill

_Part = str | RgbImage | Mark


@dataclasses.dataclass(frozen=True)
class Upload:
    """The content of a field of a form."""

    name: str
    content: bytes


class BodyReader:
    """Reads bodies as questions to one generator; raises `UserError` for what can't be asked."""

    def __init__(self, generator: Generator, limits: Limits):
        self._generator, self._limits = generator, limits
        self._size = generator.image.config.image_size

    def picture(self, body: ImageBody) -> ServedRequest:
        """A new image of a text."""
        self._require_size(body.size)
        self._require_short(body.prompt)
        return self._question(picture_prompt(body.prompt), body)

    def edit(self, body: ImageBody, image: Upload, mask: Upload | None) -> ServedRequest:
        """An image with the part under a mask drawn again, or changed as an instruction says."""
        self._require_size(body.size)
        self._require_short(body.prompt)
        pixels = decode_upload(image.content, self._size, self._limits, image.name)
        if mask is None:
            return self._question(edit_prompt(pixels, body.prompt), body)
        if body.guidance is not None:
            raise UserError("guidance is for new images and edits, not for a mask; leave it out.")
        hole = decode_mask(mask.content, self._size, self._limits, mask.name)
        return self._question(infill_prompt(body.prompt, pixels, hole), body)

    def chat(self, body: ChatBody) -> ServedRequest:
        """What the messages ask for."""
        parts = list(self._parts(body.messages))
        self._require_short("".join(body.fields.values()))
        tokens = body.max_completion_tokens or body.max_tokens
        return self._question(_chat_prompt(parts, body), body, tokens)

    def _question(self, prompt: Prompt, body: Options, tokens: int | None = None) -> ServedRequest:
        if body.n > self._limits.samples:
            raise UserError(f"n={body.n} is more than {self._limits.samples}, this server's most.")
        config = self._config(body, prompt.wanted, tokens)
        shown = self._documents(prompt, body)
        (request,) = self._generator.requests([prompt], [shown], config)
        seed = random.getrandbits(32) if body.seed is None else body.seed
        watched = bool(body.stream)
        rows = watched and isinstance(body, ImageBody) and body.partial_images != 0
        return ServedRequest(request, config, seed, body.n, rows, watched, body.attribute)

    def _config(self, body: Options, wanted: Wanted, tokens: int | None) -> DecodeConfig:
        """The run's own settings, with what a body replaces."""
        usual, most = self._generator.decode, self._limits.tokens
        given = {
            name: getattr(body, name)
            for name in ("temperature", "top_p", "top_k")
            if getattr(body, name) is not None
        }
        if "temperature" in given:
            given["temperature_range"] = None
        if body.guidance is not None:
            given |= _guidance(body.guidance, wanted)
        longest = usual.max_document_tokens or most
        given["max_text_tokens"] = min(tokens or usual.max_text_tokens, most)
        given["max_document_tokens"] = min(tokens or longest, most)
        return dataclasses.replace(usual, **given)

    def _documents(self, prompt: Prompt, body: Options) -> list[ShownDocument]:
        """The documents that a body gives, then those that are retrieved."""
        count = len(body.documents) + body.retrieve
        if count > self._limits.documents:
            raise UserError(
                f"{count} documents are more than {self._limits.documents}, this server's most."
            )
        given = [self._given(one, place) for place, one in enumerate(body.documents)]
        if not body.retrieve:
            return given
        known = [one.key for one in given if isinstance(one, Retrieved)]
        found = retrieve_for(
            self._generator.retriever,
            [prompt],
            body.retrieve,
            [*body.exclude, *known],
            body.weigh,
            body.floor,
        )
        return given + found[0]

    def _given(self, document: DocumentField, place: int) -> ShownDocument:
        if document.key is not None:
            if document.text is not None or document.image is not None:
                raise UserError(f"documents.{place} has a key; leave its text and image out.")
            retriever = self._generator.retriever
            row = retriever.row(document.key)
            return Retrieved(row, math.nan, retriever.bank.meta(row))
        self._require_short(document.text or "")
        parts: list[str | RgbImage] = [document.text] if document.text is not None else []
        if document.image is not None:
            parts.append(self._from_base64(document.image, f"documents.{place}.image"))
        return self._generator.as_shown(Document(*parts))

    def _parts(self, messages: Sequence[Message]) -> Iterator[_Part]:
        """Texts, images and marks of all messages, in order."""
        characters = pictures = 0
        for place, message in enumerate(messages):
            content = message.content or []
            for number, part in enumerate([content] if isinstance(content, str) else content):
                where = f"messages.{place}.content.{number}"
                if isinstance(part, ImagePart):
                    pictures += 1
                    if pictures > self._limits.pictures:
                        raise UserError(
                            f"a chat has more than {self._limits.pictures} images, this server's "
                            "most."
                        )
                    yield self._from_base64(part.image_url.url, where)
                    continue
                text = part if isinstance(part, str) else part.text
                self._require_short(text, characters)
                characters += len(text)
                if text.strip():
                    yield from _notation(text)

    def _from_base64(self, text: str, what: str) -> RgbImage:
        content = from_base64(text, what)
        return decode_upload(content, self._size, self._limits, what)

    def _require_size(self, size: str | None) -> None:
        own = f"{self._size}x{self._size}"
        if size not in (None, "auto", own):
            raise UserError(f"size={size[:40]!r} is not drawn by this model; ask for {own}.")

    def _require_short(self, text: str, before: int = 0) -> None:
        """Refuse a text that is too long, with the `before` characters of those it belongs to."""
        count = before + len(text)
        if count > self._limits.characters:
            raise UserError(
                f"a text has {count} characters, more than {self._limits.characters}; shorten it."
            )


def _notation(text: str) -> Iterator[_Part]:
    for part in parse_prompt(text):
        if isinstance(part, ImagePath):
            raise UserError(
                "<image:…> names a file, and a server reads none; send the image as a part of "
                "the message, of type image_url."
            )
        yield part


def _guidance(given: float | tuple[float, float], wanted: Wanted) -> dict:
    if wanted is Wanted.EDIT:
        if not isinstance(given, tuple):
            raise UserError("guidance of an edit is two numbers, by instruction and by image.")
        return {"edit_scales": given}
    if isinstance(given, tuple):
        raise UserError("guidance is one number; only an edit takes two.")
    return {"guidance_scale": given, "contrast": "none"}


def _chat_prompt(parts: list[_Part], body: ChatBody) -> Prompt:
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if isinstance(part, np.ndarray)]
    if not texts and not pictures:
        raise UserError("the messages are empty; write a text, or send an image.")
    task = body.task or _usual_task(parts)
    if task == "masks" and not body.task:
        return Prompt(_segments(parts), Wanted.MASKED)
    if any(part is Mark.MASK or part is Mark.INFILL for part in parts):
        raise UserError(f"<mask> and <infill> go with no task; leave out task={task[:40]!r}.")
    if task == "document":
        return Prompt(_segments(parts), Wanted.DOCUMENT)
    if task == "caption":
        return caption_prompt(pictures[-1]) if pictures else _no_picture()
    return _task_prompt(_known(task), texts[-1:], pictures[-1:], body.fields)


def _usual_task(parts: list[_Part]) -> str:
    """What messages that name no task look like."""
    masks = sum(part is Mark.MASK for part in parts)
    infills = sum(part is Mark.INFILL for part in parts)
    if masks or infills:
        if infills not in (masks, 1) or not masks:
            raise UserError(
                f"the messages have {masks} <mask> and {infills} <infill>; write one <infill> at "
                "the end for all masks."
            )
        return "masks"
    if not any(isinstance(part, np.ndarray) for part in parts):
        return "document"
    return "vqa" if any(isinstance(part, str) for part in parts) else "caption"


def _no_picture() -> Prompt:
    raise UserError("a caption is of an image; send one as a part of type image_url.")


def _known(name: str) -> Task:
    if name not in TASKS:
        known = ["caption", "document", *TASKS]
        raise UserError(
            f"there is no task {name[:40]!r}{nearest(name[:40], known)}; there are "
            f"{', '.join(known)}."
        )
    return TASKS[name]


def _task_prompt(
    task: Task, texts: list[str], pictures: list[RgbImage], more: dict[str, str]
) -> Prompt:
    """A task's template with the last text and the last image in it, as in training."""
    if "image" in more:
        raise UserError(
            "fields.image is a text; send the image as a part of the message, of type image_url."
        )
    values: dict = dict(more)
    if texts:
        template = task.templates[0]
        left = fields(template) - {ANSWER, "image", *values}
        first = min(left, key=lambda name: template.index(f"{{{name}}}"), default="text")
        values[first] = texts[0]
    if pictures:
        values["image"] = pictures[0]
    template = task.fitting(set(values))[0]
    try:
        filled = fill(template, values | {ANSWER: "answer"})
    except ValueError as error:
        raise UserError(f"the task {task.name}: {error}.") from None
    if task.name == "editing":
        return edit_prompt(values["image"], values["instruction"])
    parts: list[_Part] = [p for p in filled.parts if isinstance(p, str | np.ndarray | Mark)]
    before, after = parts[: filled.answer.start], parts[filled.answer.stop :]
    if after or before[-1] is not Mark.BREAK:
        return Prompt(_segments([*before, Mark.MASK, *after]), Wanted.MASKED)
    return Prompt(_segments(before), Wanted.DOCUMENT if task.name == "story" else Wanted.PICTURE)


def _segments(parts: Sequence[_Part]) -> Segments:
    """Parts as segments: texts and the masks between them are one."""
    return segments_of(Shown(part) if isinstance(part, np.ndarray) else part for part in parts)
