"""The documents shown to prompts: those that a user gives, and what retrieval finds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import PIL.Image
from etils import epath

from cm3jax.errors import UserError
from cm3jax.generation.display import ImageArray, is_picture, segments_html
from cm3jax.generation.prompts import Prompt
from cm3jax.generation.requests import ShownDocument
from cm3jax.io.texts import clean_text, decode_text, read_regular
from cm3jax.retrieval.retriever import Found, Retrieved, Retriever
from cm3jax.sequence.document import Image, Text, parse, render
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int, RgbImage
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer, load_picture, preprocess
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

Say = Callable[[str], None]
"""Gets lines for the user."""


class Document:
    """Texts and images in front of a prompt, in order; a notebook shows them.

        fox = cm3jax.Document("a red fox", image)
        model.generate("a red fox on sand", documents=[fox])

    Images are uint8 arrays, height x width x 3, of any size: the shorter side is brought to the
    model's, then the centre square is cut out. `key`, `score`, `licence` and `source` are what the
    bank knows of a document that was retrieved. Raises `UserError` without a segment, and for one
    that is neither a text nor such an array.
    """

    def __init__(
        self,
        *segments: str | np.ndarray,
        key: str = "",
        score: float | None = None,
        licence: str = "",
        source: str = "",
    ):
        for segment in segments:
            if not is_picture(segment) and not (isinstance(segment, str) and segment.strip()):
                raise UserError(
                    "a document's segments are texts and uint8 images of height x width x 3, "
                    f"not {getattr(segment, 'shape', repr(segment))}."
                )
        if not segments:
            raise UserError("a document is empty; give it a text, an image, or both.")
        self.segments = tuple(
            segment if isinstance(segment, str) else segment.view(ImageArray)
            for segment in segments
        )
        self.key, self.score, self.licence, self.source = key, score, licence, source

    @property
    def text(self) -> str | None:
        """The first text."""
        return next((s for s in self.segments if isinstance(s, str)), None)

    @property
    def image(self) -> ImageArray | None:
        """The first image."""
        return next((s for s in self.segments if isinstance(s, ImageArray)), None)

    def __repr__(self) -> str:
        parts = [repr(s) if isinstance(s, str) else f"<{s.shape} image>" for s in self.segments]
        return f"Document({', '.join([*parts, *([f'key={self.key!r}'] if self.key else [])])})"

    def _repr_html_(self) -> str:
        score = [] if self.score is None else [f"score {self.score:.2f}"]
        known = [part for part in (self.key, *score, self.licence, self.source) if part]
        return segments_html(self.segments, ", ".join(known))


class DocumentCodec:
    """Documents as people see them ↔ the vocabulary ids that the model reads."""

    def __init__(self, vocab: Vocab, text: TextTokenizer, image: ImageTokenizer):
        self._vocab, self._text, self._image = vocab, text, image

    def encode(self, document: Document) -> Int[np.ndarray, " L"]:
        """The ids of a document, without the break after it."""
        return render(tuple(map(self._segment, document.segments)), self._vocab)

    def decode(self, shown: ShownDocument) -> Document:
        """The document of these ids; a retrieved one comes with what the bank knows of it."""
        if not isinstance(shown, Retrieved):
            return Document(*self._segments(shown))
        meta = shown.meta
        return Document(
            *self._segments(shown.ids),
            key=meta.key,
            score=shown.score,
            licence=meta.licence,
            source=meta.source,
        )

    def _segments(self, ids: Int[np.ndarray, " L"]) -> list[str | RgbImage]:
        return [
            self._text.decode(list(segment.pieces))
            if isinstance(segment, Text)
            else self._image.decode(np.asarray([segment.codes]))[0]
            for segment in parse(ids, self._vocab)
        ]

    def _segment(self, segment: str | ImageArray) -> Text | Image:
        if isinstance(segment, str):
            return Text(tuple(self._text.encode(segment)))
        size = self._image.config.image_size
        picture = preprocess(PIL.Image.fromarray(np.asarray(segment)), size)
        return Image(tuple(self._image.encode(picture[None])[0].tolist()))


def read_document(path: epath.PathLike, size: int) -> Document:
    """An image file, at `size` pixels a side, with the caption in the `.txt` next to it, if any.

    Raises `UserError` if one of them can't be read.
    """
    picture = load_picture(path, size)
    caption = epath.Path(path).with_suffix(".txt")
    words = _caption(caption) if caption.exists() else ""
    return Document(*([words] if words else []), picture)


def _caption(path: epath.Path) -> str:
    try:
        return clean_text(decode_text(read_regular(path)))
    except (OSError, ValueError) as error:
        raise UserError(f"the caption {path} can't be read: {error}; write it in UTF-8.") from None


def retrieve_for(
    retriever: Retriever,
    prompts: Sequence[Prompt],
    k: int,
    exclude: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    floor: float | None = None,
    say: Say | None = None,
) -> list[list[ShownDocument]]:
    """Up to `k` documents of the bank for each prompt, found by its texts and its first image.

    Documents are excluded and weighed by their keys; `UserError` for one that the bank does not
    have. Those that score below `floor`, by default the run's own, are left out; `say` gets a line
    for each prompt that is shown fewer than were asked for.
    """
    row = retriever.row
    found = retriever.search(
        [(prompt.words, prompt.picture) for prompt in prompts],
        k,
        [[row(key) for key in exclude]] * len(prompts),
        {row(key): factor for key, factor in (weights or {}).items()},
        floor,
    )
    for prompt, one in zip(prompts, found, strict=True):
        if say is not None and len(one.documents) < k:
            say(_why_fewer(retriever, prompt, one, k, floor))
    return [list(one.documents) for one in found]


def _why_fewer(
    retriever: Retriever, prompt: Prompt, found: Found, wanted: int, floor: float | None
) -> str:
    """Why a prompt is shown fewer documents than were asked for."""
    floor = retriever.config.relevance_floor if floor is None else floor
    size = len(retriever.bank)
    line = f"{len(found.documents)} of {wanted} documents for {prompt.words or 'the image'!r}"
    if found.left_out:
        scores = ", ".join(f"{score:.2f}" for score in found.left_out)
        line += f"; scores below the floor of {floor:g} were left out: {scores}"
    elif wanted > size:
        line += f"; the bank has {size}"
    else:
        line += "; the bank has no others that pass the rules of retrieval"
    return line
