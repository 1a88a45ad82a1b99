"""From documents to rows: the CM3 objective, in integers only (section 2.2).

A *sample* is `<eos>`, retrieved documents (each followed by `<break>`), the query document and
`<eos>`. Masking moves spans of the query behind the sample's closing `<eos>`, so that a causal
model learns to write from left to right and to fill in what is missing:

    <eos> a red fox <break> I1 I2 I3 I4 <eos>
    <eos> m0 <break> I1 I2 I3 I4 <eos> m0 a red fox <eoss>         the caption is masked

Nothing is deleted (`rotation.restore` undoes it), spans cross neither `<break>` nor `<eos>`, and
retrieved documents are not masked unless the config says so. A row holds whole samples one after
another (`build_rows`), or a piece of the endless stream of samples, which is masked and rotated as
if it were one sample, documents included (`build_stream_rows`, the way of the paper's own code).

Every function takes the array module: numpy on the host, jax.numpy under jit. Both give the same
bits, because draws are a function of (seed, epoch, record), all arithmetic is on integers, and no
index is written twice.
"""

import dataclasses
from functools import partial
from types import ModuleType
from typing import no_type_check

import jax
import numpy as np

from cm3jax.config import CM3Config
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.sequence.rotation import RETRIEVED, UNWEIGHTED, WEIGHTED, PlacedTokens, rotate
from cm3jax.sequence.spans import NOWHERE, Spans, draw_spans
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import AnyArray, Float, Int

NONE = -1
"""In place of a document's row number: there is no document."""


@no_type_check  # transformations also fill it with shapes, shardings and the like
@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "targets", "weights", "segments", "positions"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows of whole samples, or of a stream of samples: then all of a row is one segment."""

    tokens: Int[AnyArray, "B L"]
    """Ids; `pad` between and after samples."""
    targets: Int[AnyArray, "B L"]
    """The next token of the same segment; `pad` where there is none."""
    weights: Float[AnyArray, "B L"]
    """Loss weight of each target, float32: 0 for placed sentinels, whose place is random, and where
    there is no target; `retrieved_weight` for documents; else 1."""
    segments: Int[AnyArray, "B L"]
    """Which sample of the row a token belongs to, from 1; 0 is padding."""
    positions: Int[AnyArray, "B L"]
    """Place in the rotated sample or stream row, from 0."""


@no_type_check  # transformations also fill it with shapes, shardings and the like
@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("documents", "document_lengths", "query", "query_lengths", "masks", "records"),
        "answers",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Rendered documents of many samples, padded to static sizes."""

    documents: Int[AnyArray, "samples R D"]
    """Retrieved documents in the order shown."""
    document_lengths: Int[AnyArray, "samples R"]
    """Their lengths; 0 where there is none."""
    query: Int[AnyArray, "samples Q"]
    """The document to learn."""
    query_lengths: Int[AnyArray, " samples"]
    """Its length, at least 1."""
    masks: Int[AnyArray, " samples"]
    """How many masks to draw, at most `config.max_masks`."""
    records: Int[AnyArray, " samples"]
    """Which record it is: decides the draws. In stream rows masks and draws are the row's."""
    answers: Int[AnyArray, "samples 3"] | None = None
    """For instruction tuning, in whole rows: where the answer starts and stops in the query, and
    whether it is recalled (1), hence the one span that is masked, or ends the query (0), which has
    no mask then. `masks` are as `answer_masks` says."""


@no_type_check  # transformations also fill it with shapes, shardings and the like
@partial(
    jax.tree_util.register_dataclass, data_fields=["rows", "offsets", "segments"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Where each sample goes."""

    rows: Int[AnyArray, " samples"]
    """Row of the batch; -1 leaves the sample out."""
    offsets: Int[AnyArray, " samples"]
    """Place of its first token in the row."""
    segments: Int[AnyArray, " samples"]
    """Its segment id, from 1."""


def _slots(
    xp: ModuleType, samples: Samples, vocab: Vocab
) -> tuple[PlacedTokens, Int[AnyArray, " samples"]]:
    """A fixed slot for every token that a sample could have, in order, and the samples' lengths.

    The slots are `<eos>`, the padded documents with their breaks, the padded query, and `<eos>`.
    """
    count, documents, width = samples.documents.shape
    lengths = samples.document_lengths.astype(xp.int32)
    taken = lengths + (lengths > 0)
    first = (1 + xp.cumsum(taken, axis=1) - taken).astype(xp.int32)
    query_start = (1 + taken.sum(1)).astype(xp.int32)
    closing = query_start + samples.query_lengths

    breaks = xp.full((count, documents, 1), vocab.break_, xp.int32)
    shown = xp.concatenate([samples.documents, breaks], axis=2)
    place = xp.arange(width + 1, dtype=xp.int32)
    # A document's break has the last slot but follows the last token.
    offset = xp.where(place < width, place, lengths[..., None])
    used = xp.where(place < width, place < lengths[..., None], lengths[..., None] > 0)
    positions = xp.where(used, first[..., None] + offset, -1)

    place = xp.arange(samples.query.shape[1], dtype=xp.int32)
    used = place < samples.query_lengths[:, None]
    query = xp.where(used, query_start[:, None] + place, -1)
    flat = (count, documents * (width + 1))
    kinds = np.full(flat[1] + samples.query.shape[1] + 2, WEIGHTED, np.int32)
    kinds[1 : flat[1] + 1] = RETRIEVED
    eos = xp.full((count, 1), vocab.eos, xp.int32)
    tokens = (eos, shown.reshape(flat), samples.query, eos)
    positions = (0 * eos, positions.reshape(flat), query, closing[:, None])
    return PlacedTokens(
        xp.concatenate(tokens, axis=1).astype(xp.int32),
        xp.broadcast_to(xp.asarray(kinds), (count, len(kinds))),
        xp.concatenate(positions, axis=1).astype(xp.int32),
    ), closing + 1


def build_rows(
    xp: ModuleType,
    samples: Samples,
    places: Places,
    shape: tuple[int, int],
    *,
    seed,
    epoch,
    config: CM3Config,
    vocab: Vocab,
) -> Batch:
    """Rotate samples and put them in their rows; `shape` is rows and tokens per row.

    `seed` is an integer, `epoch` an integer or one per sample. Samples must fit where `places` puts
    them (`reserved` says how much room to leave) and not overlap there. Raises `UserError` when the
    vocabulary has fewer sentinels than a sample may have masks.
    """
    _require_sentinels(config, vocab)
    slots, lengths = _slots(xp, samples, vocab)
    inner = slots.tokens.shape[1] - 2  # all but the two <eos>
    width = inner if config.mask_retrieved else samples.query.shape[1]
    maskable = (slots.tokens[:, -1 - width : -1], slots.positions[:, -1 - width : -1])
    counts = (samples.masks, samples.records)
    if samples.answers is not None:
        spans = _answer_spans(xp, samples, samples.answers, lengths)
        moves = rotate(xp, slots, lengths, spans, vocab)
        if config.loss_on == "answer":
            moves = moves._replace(
                kinds=_kinds_of_answers(xp, slots, moves, samples, samples.answers)
            )
        return _batch(xp, moves, places, shape, config)
    spans = draw_spans(xp, *maskable, *counts, seed=seed, epoch=epoch, config=config, vocab=vocab)
    moves = rotate(xp, slots, lengths, spans, vocab)
    return _batch(xp, moves, places, shape, config)


def _answer_spans(
    xp: ModuleType,
    samples: Samples,
    answers: Int[AnyArray, "samples 3"],
    lengths: Int[AnyArray, " samples"],
) -> Spans:
    """The answers that are recalled, each the one span of its sample."""
    first = lengths - 1 - samples.query_lengths  # where the query starts
    start, stop = (first + answers[:, side] for side in (0, 1))
    masked = samples.masks > 0
    ends = (xp.where(masked, place, NOWHERE)[:, None].astype(xp.int32) for place in (start, stop))
    return Spans(*ends)


def _kinds_of_answers(
    xp: ModuleType,
    slots: PlacedTokens,
    moves: PlacedTokens,
    samples: Samples,
    answers: Int[AnyArray, "samples 3"],
) -> Int[AnyArray, "samples W"]:
    """Kinds of a sample's moved slots that leave weight to the answer and the id that ends it:
    `<eoss>` where it is recalled, else the sample's `<eos>`."""
    closing = slots.positions[:, -1:]
    first = closing - samples.query_lengths[:, None]
    start, stop = (first + answers[:, side, None] for side in (0, 1))
    asked = (slots.positions >= start) & (slots.positions < stop)
    ends = (slots.positions == closing) & (samples.masks == 0)[:, None]
    never = xp.zeros((len(samples.masks), 1), bool)
    # Behind the slots are the sentinel, placed and recalled, and `<eoss>` of the one span.
    kept = xp.concatenate([asked | ends, never, never, ~never], axis=1)
    return xp.where(kept, moves.kinds, UNWEIGHTED)


def build_stream_rows(
    xp: ModuleType,
    samples: Samples,
    places: Places,
    shape: tuple[int, int],
    *,
    seed,
    epoch,
    config: CM3Config,
    vocab: Vocab,
) -> Batch:
    """Rows cut from a stream of samples, each row masked and rotated as one.

    A row of `length` tokens shows the first `length - 3 * masks` tokens that `places` puts in it,
    which leaves room for its tail: nothing of the stream is lost. A sample that reaches over a
    row's end is in the next row again, at a negative offset. Samples are ordered by row, every
    row has one, and `samples.masks` and `samples.records` are those of the row. Any span of a row
    may be masked that crosses neither `<break>` nor `<eos>`, but not its first token (metaseq).
    """
    _require_sentinels(config, vocab)
    rows, length = shape
    slots, _ = _slots(xp, samples, vocab)
    place = places.offsets[:, None] + slots.positions
    room = length - 3 * samples.masks[:, None]
    inside = (slots.positions >= 0) & (place >= 0) & (place < room)
    cut = slots._replace(positions=xp.where(inside, slots.positions, -1))
    tokens, kinds = _cells(xp, (cut.tokens, cut.kinds), cut.positions, places, shape)
    used = kinds != UNWEIGHTED
    row = xp.arange(rows, dtype=xp.int32)
    positions = xp.where(used, xp.arange(length, dtype=xp.int32), -1)

    first = xp.searchsorted(places.rows, row)
    epochs = xp.broadcast_to(xp.asarray(epoch), samples.records.shape)[first]
    spans = draw_spans(
        xp,
        tokens[:, 1:],
        positions[:, 1:],
        samples.masks[first],
        samples.records[first],
        seed=seed,
        epoch=epochs,
        config=config,
        vocab=vocab,
    )
    source = PlacedTokens(tokens, kinds, positions)
    moves = rotate(xp, source, used.sum(1).astype(xp.int32), spans, vocab)
    return _batch(xp, moves, Places(row, 0 * row, 0 * row + 1), shape, config)


def _require_sentinels(config: CM3Config, vocab: Vocab) -> None:
    if config.max_masks > vocab.config.sentinels:
        raise UserError(
            f"cm3.max_masks={config.max_masks} needs as many sentinels, but vocab.sentinels="
            f"{vocab.config.sentinels}; lower the first or raise the second."
        )


def _cells(xp: ModuleType, columns, positions, places: Places, shape: tuple[int, int]) -> list:
    """Every column spread over rows: 0 where nothing was placed."""
    rows, length = shape
    exists = (positions >= 0) & (places.rows >= 0)[:, None]
    target = (places.rows * length + places.offsets)[:, None] + positions
    target = xp.where(exists, target, rows * length)  # one cell behind the rows takes the rest
    values = xp.stack(columns, axis=-1).astype(xp.int32)
    cells = xp.zeros((rows * length + 1, len(columns)), xp.int32)
    if xp is np:
        cells[target] = values
    else:
        cells = cells.at[target].set(values)
    return [cells[:-1, channel].reshape(shape) for channel in range(len(columns))]


def _batch(
    xp: ModuleType, moves: PlacedTokens, places: Places, shape: tuple[int, int], config: CM3Config
) -> Batch:
    segments = xp.broadcast_to(places.segments[:, None], moves.positions.shape)
    tokens, kinds, positions, segments = _cells(
        xp, (*moves, segments), moves.positions, places, shape
    )
    return _with_targets(xp, tokens, kinds, positions, segments, config)


def _with_targets(xp: ModuleType, tokens, kinds, positions, segments, config: CM3Config) -> Batch:
    """Targets are the tokens shifted by one within each segment (`pad` and kind 0 are both 0)."""
    continues = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    last = ((0, 0), (0, 1))
    targets = xp.pad(xp.where(continues, tokens[:, 1:], Vocab.pad), last)
    kinds = xp.pad(xp.where(continues, kinds[:, 1:], UNWEIGHTED), last)
    weights = xp.asarray([0.0, 1.0, config.retrieved_weight], xp.float32)[kinds]
    return Batch(tokens, targets, weights, segments, positions)


def batch_fingerprint(batch: Batch, records: Int[np.ndarray, "B N"], first_row: int = 0) -> str:
    """Hash of tokens, targets, weights and record ids, by rows (host only).

    `records` lists each row's record ids, -1 as padding; `first_row` is the batch's first row in
    the global batch. The hashes of rows are summed, so that processes can each hash their own rows
    (`cm3jax.data.pipeline.combine_fingerprints`).
    """
    parts = (batch.tokens, batch.targets, np.asarray(batch.weights).view(np.int32))
    content = np.concatenate(parts, axis=1, dtype=np.int32)
    total = 0
    for row, (values, ids) in enumerate(zip(content, records, strict=True), start=first_row):
        total += int(digest(f"{row}: {ids[ids >= 0].tolist()}", values.tobytes()), 16)
    return f"{total % 2**64:016x}"
