"""Which documents are shown to which record: rules at preparation, a random draw at reading.

CM3Leon picks candidates by relevance, modality and diversity (section 2.1). The rules need scores
and vectors and run once, in `select_documents`; what is left per record are a few ids, from which
`draw_documents` takes a sample's documents, with integers only.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from cm3jax.config import RetrievalConfig
from cm3jax.retrieval.interface import Neighbours
from cm3jax.sequence import prng
from cm3jax.sequence.rows import NONE
from cm3jax.shapes import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The candidates of each query, best first, `NONE` where too few passed the rules; for several
    queries asked side by side, the first one's come first.
    """

    ids: Int[np.ndarray, "B C"]
    """Rows of the bank, int64."""
    scores: Float[np.ndarray, "B C"]
    """Their inner products with the query; 0 for `NONE`."""
    counts: dict[str, int]
    """What the rules did: neighbours `seen`, `excluded`, `too_relevant`, `irrelevant`,
    `not_diverse`, candidates that came before a better score for having both modalities
    (`preferred`), and candidates `missing` in the end."""


def excluded(
    ids: Int[np.ndarray, "B P"], exclude: Int[np.ndarray, "B X"]
) -> Bool[np.ndarray, "B P"]:
    """Which neighbours a query must never get: its own document, copies of it, its own image."""
    return (ids[:, :, None] == exclude[:, None, :]).any(-1)


def too_relevant(scores: Float[np.ndarray, "B P"], cut: float) -> Bool[np.ndarray, "B P"]:
    """Which neighbours are too close to the query to teach anything (the paper: above 0.9)."""
    return scores > cut


def irrelevant(scores: Float[np.ndarray, "B P"], floor: float) -> Bool[np.ndarray, "B P"]:
    """Which neighbours have nothing to do with the query."""
    return scores < floor


def above_floor(found: Neighbours, floor: float) -> Neighbours:
    """The neighbours without those that have nothing to do with their query."""
    return Neighbours(np.where(irrelevant(found.scores, floor), NONE, found.ids), found.scores)


def preference(
    scores: Float[np.ndarray, "B P"], pair: Bool[np.ndarray, "B P"], margin: float
) -> Float[np.ndarray, "B P"]:
    """Scores to rank by: a document of one modality must beat a pair by `margin`."""
    return scores - np.float32(margin) * ~pair


def near(
    chosen: Float[np.ndarray, "B E"], pool: Float[np.ndarray, "B P E"], cut: float
) -> Bool[np.ndarray, "B P"]:
    """Which documents of the pool are too close to the chosen one."""
    return np.matmul(pool, chosen[:, :, None])[..., 0] > cut


def side_by_side(found: Neighbours, counts: Sequence[int]) -> Neighbours:
    """Neighbours of consecutive queries, `counts` of them to a record, as one row per record.

    A row has as many lists as the largest count, each of the same length, padded with `NONE`.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(0), *(np.arange(count) for count in counts)]).astype(int)
    shape = (len(counts), max([1, *counts]), found.ids.shape[1])
    ids, scores = np.full(shape, NONE, np.int64), np.full(shape, -np.inf, np.float32)
    ids[owner, place], scores[owner, place] = found.ids, found.scores
    rows = shape[0], shape[1] * shape[2]
    return Neighbours(ids.reshape(rows), scores.reshape(rows))


def select_documents(
    neighbours: Neighbours,
    vectors: Float[np.ndarray, "M E"],
    pair: Bool[np.ndarray, " M"],
    config: RetrievalConfig,
    exclude: Int[np.ndarray, "B X"] | None = None,
    cuts: bool = True,
    queries: int = 1,
) -> Choice:
    """Pick `config.candidates` of each query's neighbours, greedily by score.

    `vectors` and `pair` (has both modalities) are the whole bank's; `exclude` holds ids that a
    query must not get, `NONE` as padding. Without `cuts` no document is too relevant or too
    irrelevant: at generation `above_floor` has already removed those. With several `queries`, a row
    holds as many lists of equal length (`side_by_side`): the best document of all is chosen first,
    and a list that gave one already must beat the others by `config.clause_margin` to give another.
    The chosen ones then are in the order of their lists, so that a text's first clause has its
    document first.
    """
    if exclude is None:
        exclude = np.full((len(neighbours.ids), 1), NONE)
    if not cuts:
        config = dataclasses.replace(config, relevance_cut=np.inf, relevance_floor=-np.inf)
    step = 200_000 // max(neighbours.ids.shape[1], 1) + 1  # whose pools' vectors fit in memory
    parts = [
        _choose(
            neighbours.ids[start : start + step],
            neighbours.scores[start : start + step],
            exclude[start : start + step],
            vectors,
            pair,
            config,
            queries,
        )
        for start in range(0, max(len(neighbours.ids), 1), step)
    ]
    return Choice(
        ids=np.concatenate([part.ids for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        counts={name: sum(part.counts[name] for part in parts) for name in parts[0].counts},
    )


def _choose(ids, scores, exclude, vectors, pair, config: RetrievalConfig, queries: int) -> Choice:
    rows = np.arange(len(ids))
    query = np.arange(ids.shape[1]) // max(ids.shape[1] // queries, 1)
    turns = np.zeros((len(ids), queries), np.float32)
    own = excluded(ids, exclude) | (ids == NONE)
    close = too_relevant(scores, config.relevance_cut) & ~own
    far = irrelevant(scores, config.relevance_floor) & ~own
    left = ~own & ~close & ~far
    rank = preference(scores, pair[ids], config.modality_margin)
    pool = vectors[ids]
    chosen_ids = np.full((len(ids), config.candidates), NONE, np.int64)
    chosen_scores = np.zeros((len(ids), config.candidates), np.float32)
    asked_by = np.full((len(ids), config.candidates), queries)
    not_diverse = preferred = 0
    for place in range(config.candidates if ids.shape[1] else 0):
        best = np.where(left, rank - turns[:, query], -np.inf).argmax(1)
        by_score = np.where(left, scores - turns[:, query], -np.inf).argmax(1)
        found = left[rows, best]
        preferred += int((found & (ids[rows, best] != ids[rows, by_score])).sum())
        chosen_ids[found, place] = ids[rows, best][found]
        chosen_scores[found, place] = scores[rows, best][found]
        asked_by[found, place] = query[best][found]
        turns[rows, query[best]] += np.float32(config.clause_margin)
        left &= ids != ids[rows, best, None]
        similar = near(pool[rows, best], pool, config.diversity_cut) & left & found[:, None]
        not_diverse += int(similar.sum())
        left &= ~similar
    order = asked_by.argsort(axis=1, kind="stable")
    chosen_ids, chosen_scores = _take(np, chosen_ids, order), _take(np, chosen_scores, order)
    counts = {
        "seen": int((ids != NONE).sum()),
        "excluded": int((own & (ids != NONE)).sum()),
        "too_relevant": int(close.sum()),
        "irrelevant": int(far.sum()),
        "not_diverse": not_diverse,
        "preferred": preferred,
        "missing": int((chosen_ids == NONE).sum()),
    }
    return Choice(chosen_ids, chosen_scores, counts)


def drop_pieces(
    texts: Sequence[Sequence[int]],
    records: Int[np.ndarray, " B"],
    view: int | Int[np.ndarray, " B"],
    share: float,
    seed: int,
) -> list[Sequence[int]]:
    """The pieces of query view number `view`: view 0 is clean, others lack a `share` of them.

    What is dropped depends on (seed, view, record). A text never loses all its pieces.
    """
    longest = max(map(len, texts), default=0)
    words = prng.bits(np, seed, view, records, prng.PrngStream.QUERY_DROPOUT, longest + 1)
    lost = prng.chance(np, words, share) & (np.asarray(view) > 0).reshape(-1, 1)
    views = []
    for pieces, gone in zip(texts, lost.tolist(), strict=True):
        left = [piece for piece, is_gone in zip(pieces, gone, strict=False) if not is_gone]
        views.append(left or pieces[:1])
    return views


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """The documents that samples are shown, in order."""

    ids: Int[Array | np.ndarray, "B R"]
    """Rows of the bank, `NONE` at the end where there are fewer."""
    scores: Float[Array | np.ndarray, "B R"]
    """The scores they were chosen with; 0 for `NONE`."""


def draw_documents(
    xp: ModuleType,
    ids: Int[Array | np.ndarray, "B W Q C"],
    scores: Float[Array | np.ndarray, "B W Q C"],
    seed: int,
    epoch: int | Int[Array | np.ndarray, " B"],
    record: Int[Array | np.ndarray, " B"],
    documents: int,
) -> Drawn:
    """Draw up to `documents` of each record's stored candidates (views W, query modalities Q).

    One view and one order of the query modalities are drawn; the first one's candidates are taken
    in random order before the others', without repeats. With the paper's 2 + 2 candidates, three
    documents are then a uniform draw of three of the four; fewer all come from one query modality,
    as they do at inference. Those drawn are shown as they are stored, again as at inference: the
    order itself may tell whose document is whose.
    """
    batch, views, modalities, candidates = ids.shape
    slots = modalities * candidates
    words = prng.bits(xp, seed, epoch, record, prng.PrngStream.VIEW, 2 + modalities)
    view = prng.below(xp, words[:, 0], views).astype(xp.int32)
    rows = xp.arange(batch)
    ids, scores = (part[rows, view].reshape(batch, slots) for part in (ids, scores))
    keys = prng.bits(xp, seed, epoch, record, prng.PrngStream.DOCUMENTS, slots)

    block = xp.repeat(xp.argsort(xp.argsort(words[:, 2:], axis=1), axis=1), candidates, axis=-1)
    order = _sorted_by(xp, [keys, block, ids == NONE])
    ids, scores, stored = _take(xp, ids, order), _take(xp, scores, order), order
    earlier = xp.asarray(np.tri(slots, k=-1, dtype=bool))
    repeated = ((ids[:, :, None] == ids[:, None, :]) & earlier).any(-1)
    order = _sorted_by(xp, [repeated | (ids == NONE)])[:, :documents]
    kept = ~_take(xp, repeated | (ids == NONE), order)
    ids, scores, stored = (_take(xp, part, order) for part in (ids, scores, stored))
    order = _sorted_by(xp, [stored, ~kept])
    kept, ids, scores = (_take(xp, part, order) for part in (kept, ids, scores))
    return Drawn(xp.where(kept, ids, NONE), xp.where(kept, scores, 0))


_WRONG = -1.0
"""The score of a wrong document: the first to go where there is no room for all."""


def with_wrong(
    xp: ModuleType,
    drawn: Drawn,
    others: Int[Array | np.ndarray, " B"],
    chosen: Bool[Array | np.ndarray, " B"],
) -> Drawn:
    """Put document `others` of another record in the last place of each sample that is `chosen`,
    or in the first free one; not where that is not a document or is shown already."""
    slots = xp.arange(drawn.ids.shape[1])
    found = (drawn.ids != NONE).sum(1)
    place = xp.minimum(found, drawn.ids.shape[1] - 1)
    fits = chosen & (others != NONE) & ~(drawn.ids == others[:, None]).any(1)
    here = fits[:, None] & (slots == place[:, None])
    scores = xp.where(here, xp.asarray(_WRONG, drawn.scores.dtype), drawn.scores)
    return Drawn(xp.where(here, others[:, None], drawn.ids), scores)


def shuffled(
    xp: ModuleType,
    drawn: Drawn,
    seed: int,
    epoch: int | Int[Array | np.ndarray, " B"],
    record: Int[Array | np.ndarray, " B"],
) -> Drawn:
    """The documents of each sample in random order, missing ones still last."""
    slots = drawn.ids.shape[1]
    keys = prng.bits(xp, seed, epoch, record, prng.PrngStream.DOCUMENT_ORDER, slots)
    order = _sorted_by(xp, [keys, drawn.ids == NONE])
    return Drawn(_take(xp, drawn.ids, order), _take(xp, drawn.scores, order))


def _sorted_by(xp: ModuleType, keys):
    """The order that sorts rows by the last key first, as `lexsort` does, along axis 1."""
    return xp.lexsort(xp.stack([key.astype(xp.uint32) for key in keys]), axis=-1)


def _take(xp: ModuleType, values, order):
    return xp.take_along_axis(values, order, axis=-1)
