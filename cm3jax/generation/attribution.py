"""What each document did for an answer: how much likelier it made it, and what was copied from it.

A document is left out, all else stays as it was, and the same answer is measured again: what its
ids lose in log-probability is what the document gave them. Of documents that say the same, each can
be spared, and gives little.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cm3jax.generation.requests import ShownDocument
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Image, parse
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import Float, Int, RgbImage

_STRONG = 3.0
"""Nats that are shown in the strongest colour."""


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentEffect:
    """What one document did for one answer."""

    gains: Float[np.ndarray, " T"]
    """Nats by which it made each id of the answer likelier, negative where it made it less so."""
    copied: float | None
    """Share of the answer's codes that its image has in the same places; None where the answer is
    no whole image, or the document has none."""

    @property
    def gain(self) -> float:
        """Nats by which it made the whole answer likelier."""
        return float(self.gains.sum())


def prefixes_without(
    prefix: Int[np.ndarray, " L"], documents: Sequence[ShownDocument]
) -> list[Int[np.ndarray, " _"]]:
    """What the model saw, without each of the documents in turn."""
    out, start = [], 1  # after the <eos> that begins the prompt
    for shown in documents:
        stop = start + len(_ids(shown)) + 1  # with the <break> after it
        out.append(np.concatenate([prefix[:start], prefix[stop:]]))
        start = stop
    return out


def effects(
    ids: Int[np.ndarray, " T"],
    documents: Sequence[ShownDocument],
    logprobs: Sequence[Float[np.ndarray, " T"]],
    vocab: Vocab,
) -> list[DocumentEffect]:
    """The effect of each document; `logprobs` of the answer's ids, first after all documents, then
    as `prefixes_without` orders them."""
    whole, *without = logprobs
    return [
        DocumentEffect(whole - each, _copied(ids, _ids(shown), vocab))
        for shown, each in zip(documents, without, strict=True)
    ]


def gains_by_place(
    ids: Int[np.ndarray, " T"], gains: Float[np.ndarray, " T"], before: int, vocab: Vocab
) -> Float[np.ndarray, "grid grid"] | None:
    """The gains of an image's codes where they are in it, 0 where it was not drawn; `before` codes
    come before the answer's first one. None for an answer that is no such image."""
    pictured = bool((vocab.modality(ids) == Modality.IMAGE).all())
    if not pictured or before + len(ids) > vocab.image_tokens:
        return None
    whole = np.zeros(vocab.image_tokens)
    whole[before : before + len(ids)] = gains
    return whole.reshape(vocab.config.grid, vocab.config.grid)


def heat_map(image: RgbImage, gains: Float[np.ndarray, " T"], grid: int) -> RgbImage:
    """An image in grey, redder where a document made its codes likelier, bluer where less so."""
    cells = np.clip(np.asarray(gains).reshape(grid, grid) / _STRONG, -1, 1)
    each = len(image) // grid
    strength = cells.repeat(each, 0).repeat(each, 1)[..., None]
    colour = np.where(strength > 0, (255, 40, 0), (0, 80, 255))
    grey = image.mean(-1, keepdims=True).repeat(3, -1)
    mixed = grey + 0.75 * np.abs(strength) * (colour - grey)
    return np.round(mixed).astype(np.uint8)


def is_whole_picture(ids: Int[np.ndarray, " T"], vocab: Vocab) -> bool:
    """Whether an answer is the codes of one image, all of them."""
    return len(ids) == vocab.image_tokens and bool((vocab.modality(ids) == Modality.IMAGE).all())


def _ids(shown: ShownDocument) -> Int[np.ndarray, " _"]:
    return shown.ids if isinstance(shown, Retrieved) else np.asarray(shown)


def _copied(
    answer: Int[np.ndarray, " T"], document: Int[np.ndarray, " _"], vocab: Vocab
) -> float | None:
    """The largest share over the document's images."""
    if not is_whole_picture(answer, vocab):
        return None
    codes = answer - vocab.first_image
    shares = [
        float((codes == np.asarray(segment.codes)).mean())
        for segment in parse(document, vocab)
        if isinstance(segment, Image)
    ]
    return max(shares, default=None)
