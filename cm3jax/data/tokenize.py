"""Raw records to ids: what a corpus and a bank are made of."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from cm3jax.config import VocabConfig
from cm3jax.data.readers.items import BadRecord
from cm3jax.data.sources import RawRecord, Source
from cm3jax.errors import UserError
from cm3jax.retrieval.clip_encoder import ClipEncoder, fit_picture, text_and_image
from cm3jax.sequence.document import Image, Text, render
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class Tools:
    """What turns raw records into ids and vectors."""

    text: TextTokenizer
    image: ImageTokenizer
    encoder: ClipEncoder

    def vocab(self, sizes: VocabConfig, image_size: int) -> Vocab:
        """`fitting_vocab` of these tokenizers."""
        return fitting_vocab(sizes, image_size, self.text, self.image)


def fitting_vocab(
    sizes: VocabConfig, image_size: int, text: TextTokenizer, image: ImageTokenizer
) -> Vocab:
    """A vocabulary as its tokenizers fill it; `UserError` if they fit neither it nor images of
    `image_size` pixels a side."""
    own = image.config
    fits = {
        "data.image_size": (image_size, own.image_size, "pixels a side"),
        "vocab.grid": (sizes.grid, own.grid, "codes a side"),
        "vocab.image_codes": (sizes.image_codes, own.codes, "codes to choose from"),
    }
    for name, (given, wanted, what) in fits.items():
        if given != wanted:
            raise UserError(
                f"{name}={given}, but the image tokenizer has {wanted} {what}; set "
                f"{name}={wanted}, or give another tokenizers.image."
            )
    if text.pieces > sizes.text_pieces:
        raise UserError(
            f"vocab.text_pieces={sizes.text_pieces}, but the text tokenizer has {text.pieces} "
            "pieces; raise it, or give another tokenizers.text."
        )
    return Vocab(sizes, text.fingerprint, image.fingerprint)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenised:
    """One raw record in ids, or the reason why it cannot be."""

    raw: RawRecord
    ids: Int[np.ndarray, " L"]
    refused: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedBatch:
    """Records of a source that can be prepared, by number, and the others."""

    numbers: Int[np.ndarray, " M"]
    """The records' numbers in their source."""
    items: list[Tokenised]
    refused: dict[str, str]
    """Keys of the others, with the reason."""


def read_and_tokenise(
    source: Source,
    span: Iterable[int],
    tools: Tools,
    vocab: Vocab,
    room: int | None = None,
) -> TokenisedBatch:
    """Read and tokenise records; one that is bad is listed and left out."""
    raws, numbers, refused = [], [], {}
    for number in span:
        try:
            raws.append(source[number])
            numbers.append(number)
        except BadRecord as bad:
            refused[bad.key] = bad.reason
    items = tokenise(raws, tools, vocab, room)
    refused |= {item.raw.key: item.refused for item in items if item.refused}
    kept = [place for place, item in enumerate(items) if not item.refused]
    chosen = np.asarray(numbers, np.int64)[np.asarray(kept, np.int64)]
    return TokenisedBatch(chosen, [items[place] for place in kept], refused)


def tokenise(
    records: Sequence[RawRecord], tools: Tools, vocab: Vocab, room: int | None = None
) -> list[Tokenised]:
    """Ids of raw records; images are encoded together.

    One that does not fit a row of `room` tokens, between its two `<eos>`, is refused.
    """
    pictures = [part for raw in records for part in raw.segments if not isinstance(part, str)]
    codes = iter(tools.image.encode(pictures) if pictures else ())
    result = []
    for raw in records:
        document = tuple(
            Text(tuple(tools.text.encode(part)))
            if isinstance(part, str)
            else Image(tuple(next(codes).tolist()))
            for part in raw.segments
        )
        try:
            ids = render(document, vocab)
            refused = "" if len(ids) else "it is empty"
        except ValueError as error:
            ids, refused = np.zeros(0, np.int32), str(error)
        if room is not None and len(ids) > room - 2:
            refused = f"it has {len(ids)} tokens, and a row holds {room - 2}"
        result.append(Tokenised(raw, ids, refused))
    return result


def encoder_parts(raw: RawRecord, encoder: ClipEncoder) -> tuple[str | None, np.ndarray | None]:
    """The text and the image of a record as the encoder takes them."""
    text, image = text_and_image(raw.segments)
    return text, None if image is None else fit_picture(image, encoder.config)
