"""The documents shown to prompts: those that a user gives, and what retrieval finds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.generation.prompts import Prompt
from cm3jax.generation.requests import ShownDocument
from cm3jax.io.texts import clean_text, decode_text, read_regular
from cm3jax.retrieval.retriever import Found, Retriever
from cm3jax.sequence.document import Image, Text, render
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer, load_picture
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

Say = Callable[[str], None]
"""Gets lines for the user."""


def read_document(
    path: epath.PathLike, text: TextTokenizer, image: ImageTokenizer, vocab: Vocab
) -> Int[np.ndarray, " L"]:
    """The ids of a document of a picture file, and of the caption in the `.txt` next to it, if any.

    Raises `UserError` if one of them can't be read.
    """
    picture = load_picture(path, image.config.image_size)
    codes = Image(tuple(image.encode(picture[None])[0].tolist()))
    caption = epath.Path(path).with_suffix(".txt")
    pieces = text.encode(_caption(caption)) if caption.exists() else []
    segments = (Text(tuple(pieces)), codes) if pieces else (codes,)
    return render(segments, vocab)


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
    """Up to `k` documents of the bank for each prompt, found by its texts and its first picture.

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
    line = f"{len(found.documents)} of {wanted} documents for {prompt.words or 'the picture'!r}"
    if found.left_out:
        scores = ", ".join(f"{score:.2f}" for score in found.left_out)
        line += f"; scores below the floor of {floor:g} were left out: {scores}"
    elif wanted > size:
        line += f"; the bank has {size}"
    else:
        line += "; the bank has no others that pass the rules of retrieval"
    return line
