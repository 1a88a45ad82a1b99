"""What a sample is shown, how many tokens it takes, and what it gives up to fit in a row."""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from cm3jax.config import CM3Config
from cm3jax.sequence import prng
from cm3jax.sequence.prng import PrngStream
from cm3jax.shapes import AnyArray, Bool, Int


def answer_masks(answers: Int[AnyArray, "samples 3"]) -> Int[AnyArray, " samples"]:
    """The masks of samples with answers, int32: 1 where the answer is recalled, else 0."""
    return answers[:, 2].astype(np.int32)


def documents_shown(
    xp: ModuleType, seed, epoch, records: Int[AnyArray, " samples"], most: int, config: CM3Config
) -> Int[AnyArray, " samples"]:
    """How many of its documents each sample is shown, 0 to `most`: the first ones."""
    words = prng.bits(xp, seed, epoch, records, PrngStream.NO_DOCUMENTS, 2)
    count = xp.full(records.shape, most, xp.int32)
    if config.vary_documents:
        count = prng.below(xp, words[..., 1], most + 1).astype(xp.int32)
    return xp.where(prng.chance(xp, words[..., 0], config.no_documents), 0, count)


def reserved(xp: ModuleType, document_lengths, query_lengths, masks):
    """Tokens that a sample may take: two `<eos>`, documents with their breaks, the query, and two
    sentinels and one `<eoss>` for each mask. A mask that finds no place leaves its three unused."""
    documents = document_lengths + (document_lengths > 0)
    return (2 + documents.sum(-1) + query_lengths + 3 * masks).astype(xp.int32)


class Fitted(NamedTuple):
    """What is left of a sample so that it fits."""

    document_lengths: Int[AnyArray, "samples R"]
    """0 where a document was dropped."""
    masks: Int[AnyArray, " samples"]
    """Masks that still fit."""
    fits: Bool[AnyArray, " samples"]
    """False where even the bare query is too long."""


def fit_samples(
    xp: ModuleType, document_lengths, scores, query_lengths, masks, room: int
) -> Fitted:
    """Make samples fit in `room` tokens: drop whole documents, lowest score first, then masks.

    `scores` is `[samples R]`; of equal ones the later document goes first.
    """
    rank = xp.arange(document_lengths.shape[-1])
    for _ in range(document_lengths.shape[-1]):
        present = document_lengths > 0
        low = xp.where(present, scores, xp.inf).min(-1, keepdims=True)
        worst = xp.where(present & (scores <= low), rank, -1).max(-1, keepdims=True)
        excess = reserved(xp, document_lengths, query_lengths, masks) > room
        document_lengths = xp.where(excess[:, None] & (rank == worst), 0, document_lengths)
    spare = room - reserved(xp, document_lengths, query_lengths, 0 * masks)
    return Fitted(document_lengths, xp.clip(spare // 3, 0, masks).astype(xp.int32), spare >= 0)
