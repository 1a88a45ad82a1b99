"""The audit of a bank as a page: its figures, and what some queries find, as images."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cm3jax.config import VocabConfig
from cm3jax.errors import UserError
from cm3jax.report.html import cell, facts, figure, is_titled, page, png_uri, tag
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import mark_of
from cm3jax.retrieval.interface import Neighbours
from cm3jax.sequence.document import Image, parse
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import UInt8
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer

_TITLE = "Audit of a memory bank"


@dataclasses.dataclass(frozen=True, eq=False)
class AuditQuery:
    """A pair that asked, and what it found by kind of query."""

    text: str
    picture: UInt8[np.ndarray, "Y X 3"]
    found: Mapping[str, Neighbours]
    """`text`, `image` or `both` → the neighbours of one query."""


def audit_page(
    bank: Bank,
    rows: Sequence[tuple[str, str]],
    examples: Sequence[AuditQuery],
    vocab: VocabConfig,
    tokenizer: ImageTokenizer | None,
) -> str:
    """The page; without a tokenizer it shows captions only, since images can't be drawn."""
    shown = _pictures(bank, examples, Vocab(vocab), tokenizer)
    body = [tag("h1", f"Audit of the memory bank at {bank.path}"), facts(rows)]
    for example in examples:
        body.append(tag("h2", example.text))
        asked = cell("asked with", picture=png_uri(example.picture), alt=example.text)
        for kind, found in example.found.items():
            cells = [
                cell(
                    f"{score:.3f} {document.text}",
                    tag("br"),
                    tag("small", document.key),
                    picture=shown.get(int(row)),
                    document=mark_of(document),
                )
                for row, score in zip(found.ids[0], found.scores[0], strict=True)
                for document in [bank.meta(int(row))]
            ]
            body.append(figure(f"by {kind}", asked, *cells))
    return page(_TITLE, *body)


def is_audit_page(content: bytes) -> bool:
    """Whether a file is such a page."""
    return is_titled(content, _TITLE)


def _pictures(
    bank: Bank, examples: Sequence[AuditQuery], vocab: Vocab, tokenizer: ImageTokenizer | None
) -> dict[int, str]:
    """The first image of every document that was found, as a `data:` URI, by row."""
    if tokenizer is None:
        return {}
    found = {int(row) for example in examples for n in example.found.values() for row in n.ids[0]}
    codes = {}
    for row in sorted(found):
        try:
            pictures = [part for part in parse(bank.ids(row), vocab) if isinstance(part, Image)]
        except ValueError as error:
            raise UserError(
                f"the bank {bank.path} was made with another vocabulary than this experiment's "
                f"({error}); give the experiment that made it."
            ) from None
        if pictures:
            codes[row] = pictures[0].codes
    if not codes:
        return {}
    pixels = tokenizer.decode(np.asarray(list(codes.values()), np.int32))
    return {row: png_uri(image) for row, image in zip(codes, pixels, strict=True)}
