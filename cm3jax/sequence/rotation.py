"""The CM3 rotation of samples, and its inverse (section 2.2).

Masked spans move behind the sample's closing `<eos>`; a sentinel is placed where a span was, and
recalled in front of it at its new place.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from cm3jax.sequence.spans import NOWHERE, Spans
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import AnyArray, Int

UNWEIGHTED, WEIGHTED, RETRIEVED = 0, 1, 2
"""Kinds of a token as a target: none of the loss, its full weight, or that of documents."""


class PlacedTokens(NamedTuple):
    """Tokens of many samples (or rows), each with its place; not all slots are used."""

    tokens: Int[AnyArray, "samples W"]
    kinds: Int[AnyArray, "samples W"]
    """Which loss weight it has as a target."""
    positions: Int[AnyArray, "samples W"]
    """Place in the sample; -1 for what does not exist."""


def rotate(
    xp: ModuleType,
    source: PlacedTokens,
    lengths: Int[AnyArray, " samples"],
    spans: Spans,
    vocab: Vocab,
) -> PlacedTokens:
    """Move the spans behind the samples' `lengths` tokens, each between a sentinel and `<eoss>`."""
    placed = spans.starts < NOWHERE
    masked = spans.stops - spans.starts
    saved = xp.where(placed, masked - 1, 0)
    tails = xp.where(placed, masked + 2, 0)
    recalled = (lengths - saved.sum(1))[:, None] + xp.cumsum(tails, axis=1) - tails
    sentinels = spans.starts - (xp.cumsum(saved, axis=1) - saved)

    shift = xp.zeros_like(source.positions)
    for k in range(spans.starts.shape[1]):
        start, stop = spans.starts[:, k, None], spans.stops[:, k, None]
        inside = (source.positions >= start) & (source.positions < stop)
        shift = shift - xp.where(source.positions >= stop, saved[:, k, None], 0)
        shift = xp.where(inside, recalled[:, k, None] + 1 - start, shift)
    positions = xp.where(source.positions >= 0, source.positions + shift, -1)

    def where_placed(position):
        return xp.where(placed, position, -1)

    names = xp.broadcast_to(vocab.sentinel(0) + xp.arange(placed.shape[1]), placed.shape)
    ends = xp.full(placed.shape, vocab.eoss)
    weighted = xp.full(placed.shape, WEIGHTED)
    return PlacedTokens(
        *(
            xp.concatenate(parts, axis=1).astype(xp.int32)
            for parts in (
                (source.tokens, names, names, ends),
                (source.kinds, xp.full(placed.shape, UNWEIGHTED), weighted, weighted),
                (
                    positions,
                    where_placed(sentinels),
                    where_placed(recalled),
                    where_placed(recalled + 1 + masked),
                ),
            )
        )
    )


class UnrotatedSample(NamedTuple):
    """A sample before rotation."""

    documents: Int[np.ndarray, " L"]
    """Ids of the retrieved documents, each with the break that follows it."""
    query: Int[np.ndarray, " L"]
    """Ids of the query document."""


def restore(ids: Int[np.ndarray, " L"], query_start: int, vocab: Vocab) -> UnrotatedSample:
    """Undo the rotation of one sample (host only).

    `ids` is the rotated sample without padding; `query_start` is where the query begins before
    rotation, which is also where it begins after it unless documents are masked too.
    """
    closing = 1 + int(np.flatnonzero(ids[1:] == vocab.eos)[0])
    source, tail = ids[1:closing], ids[closing + 1 :]
    spans = {}
    while len(tail):
        stop = int(np.flatnonzero(tail == vocab.eoss)[0])
        spans[int(tail[0])], tail = tail[1:stop], tail[stop + 1 :]
    parts = [spans[int(id_)] if vocab.is_sentinel(id_) else [id_] for id_ in source]
    sample = np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
    return UnrotatedSample(sample[: query_start - 1], sample[query_start - 1 :])
