"""A filled template in ids, with the place of what is asked for."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cm3jax.sequence.document import Mark
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int
from cm3jax.tasks.task import Filled
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


class Answer(NamedTuple):
    """The place of the answer in a document's ids."""

    start: int
    stop: int
    recalled: bool
    """Whether it is masked in its place and follows at the sample's end; else it ends the document
    and is simply continued."""


@dataclasses.dataclass(frozen=True, eq=False)
class TaskDocument:
    """A document to learn an answer from."""

    ids: Int[np.ndarray, " L"]
    answer: Answer


def to_document(
    filled: Filled, codes: Sequence[Sequence[int]], text: TextTokenizer, vocab: Vocab
) -> TaskDocument:
    """The document of a filled template; `codes` are those of its images, in order.

    Texts that a field parts are tokenised apart, as in a prompt with a mask. Raises `ValueError`
    for an answer that is neither a text nor the document's end.
    """
    ids: list[int] = []
    places = []
    pictures = iter(codes)
    for part in filled.parts:
        start = len(ids)
        if part is Mark.BREAK:
            ids.append(vocab.break_)
        elif isinstance(part, str):
            ids += [vocab.first_text + piece for piece in text.encode(part)]
        else:
            ids += [vocab.first_image + int(code) for code in next(pictures)]
        places.append((start, len(ids)))
    start, stop = places[filled.answer.start][0], places[filled.answer[-1]][1]
    recalled = len(filled.answer) == 1 and isinstance(filled.parts[filled.answer.start], str)
    if not recalled and stop != len(ids):
        raise ValueError("the answer is neither a text nor the end of the document")
    return TaskDocument(np.asarray(ids, np.int32), Answer(start, stop, recalled))
