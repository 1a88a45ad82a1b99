"""Which spans of a sample are masked (section 2.2): integer draws, the same in numpy and jax.numpy.

The number of masks is Poisson. Each is either one whole segment or a random span clipped to the
segment that it overlaps most; one that overlaps an earlier mask, or is empty, is drawn again. So
no span crosses a `<break>` or an `<eos>`; two may touch. A random span of an image may be widened
to whole rows of its codes (`config.picture_rows`).

A sample's tokens are in *slots*: padded to static sizes, in order, each with its place in the
sample, -1 in an unused slot.
"""

import math
from functools import partial
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np

from cm3jax.config import CM3Config
from cm3jax.sequence import prng
from cm3jax.sequence.prng import PrngStream
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import AnyArray, Int

REPEATS = 8
"""How often an overlapping or empty mask is drawn again before it is dropped."""
_WORDS = 4
"""Words of one draw of a mask: kind, two places, whether it is widened (starts must be even)."""
NOWHERE = 1 << 30
"""The place of a mask that does not exist: behind everything."""


def mask_counts(
    xp: ModuleType, seed, epoch, records: Int[AnyArray, " samples"], config: CM3Config
) -> Int[AnyArray, " samples"]:
    """Poisson(mean_masks) clamped to [0, max_masks], int32, by a table of integer thresholds."""
    word = prng.bits(xp, seed, epoch, records, PrngStream.MASK_COUNT, 1)[..., 0]
    term = total = math.exp(-config.mean_masks)
    count = xp.zeros(word.shape, xp.int32)
    for n in range(1, config.max_masks + 1):
        count = count + ~prng.chance(xp, word, min(total, 1.0))
        term *= config.mean_masks / n
        total += term
    return count.astype(xp.int32)


class Spans(NamedTuple):
    """Masked spans by their places in the sample before rotation, ordered.

    Unused ones are last, at `NOWHERE`; there are `max_masks` or, on the host, as many as the
    sample with most masks has.
    """

    starts: Int[AnyArray, "samples K"]
    stops: Int[AnyArray, "samples K"]


def draw_spans(
    xp: ModuleType,
    tokens: Int[AnyArray, "samples W"],
    positions: Int[AnyArray, "samples W"],
    masks: Int[AnyArray, " samples"],
    records: Int[AnyArray, " samples"],
    *,
    seed,
    epoch,
    config: CM3Config,
    vocab: Vocab,
) -> Spans:
    """Draw `masks` masks over each sample's slots; those that find no place are dropped.

    The slots hold what may be masked and the `<break>`s and `<eos>`s between its segments. `seed`
    is an integer, `epoch` an integer or one per sample.
    """
    region = _region(xp, tokens, positions, vocab)
    count = len(masks)
    # Under jit the number of masks must be static; numpy leaves out what no sample needs.
    most = int(masks.max(initial=0)) if xp is np else config.max_masks
    zero = xp.zeros(count, xp.int32)
    nowhere = xp.full((count, most), NOWHERE, xp.int32)
    # numpy writes into the state: each of its arrays is another one.
    state = _State(zero, xp.copy(zero), nowhere, xp.copy(nowhere))
    epochs = xp.broadcast_to(xp.asarray(epoch), (count,))
    step = partial(_draw_once, xp, config, seed)
    state = _until_done(xp, step, _Inputs(masks, records, epochs, region), state)
    order = xp.argsort(state.starts, axis=1)
    return Spans(*(xp.take_along_axis(ends, order, 1) for ends in (state.starts, state.stops)))


class _Region(NamedTuple):
    """What the draws need to know of each sample's slots."""

    first: Int[AnyArray, " samples"]
    """Place of the first token that may be masked."""
    stop: Int[AnyArray, " samples"]
    """Place after the last one."""
    rank: Int[AnyArray, "samples W"]
    """Segment number of each slot, from 0; -1 for what separates them and for unused slots."""
    starts: Int[AnyArray, "samples W"]
    """First place of the slot's segment."""
    stops: Int[AnyArray, "samples W"]
    """Place after the last of the slot's segment."""
    units: Int[AnyArray, "samples W"]
    """Tokens of a row of the slot's image; 1 in a text."""


def _region(xp: ModuleType, tokens, positions, vocab: Vocab) -> _Region:
    used = positions >= 0
    between = used & ((tokens == vocab.break_) | (tokens == vocab.eos))
    first, stop = xp.where(used, positions, NOWHERE).min(1), positions.max(1) + 1
    starts = _running_max(xp, xp.where(between, positions + 1, first[:, None]))
    ends = xp.where(between, positions, stop[:, None])
    stops = -_running_max(xp, -ends[:, ::-1])[:, ::-1]
    # Counted where they begin: two <eos> in a row have no segment between them.
    inside = used & ~between
    rank = xp.cumsum(inside & (positions == starts), axis=1) - 1
    rank = xp.where(inside, rank, -1).astype(xp.int32)
    picture = vocab.modality(tokens, xp) == int(Modality.IMAGE)
    units = xp.where(picture, vocab.config.grid, 1).astype(xp.int32)
    return _Region(first, stop, rank, starts, stops, units)


def _running_max(xp: ModuleType, values):
    return np.maximum.accumulate(values, axis=1) if xp is np else jax.lax.cummax(values, axis=1)


class _Inputs(NamedTuple):
    masks: Int[AnyArray, " samples"]
    records: Int[AnyArray, " samples"]
    epochs: Int[AnyArray, " samples"]
    region: _Region


class _State(NamedTuple):
    """How far the drawing of each sample's masks is."""

    mask: Int[AnyArray, " samples"]
    """Masks that are placed or dropped."""
    attempt: Int[AnyArray, " samples"]
    """Draws of the current mask that failed."""
    starts: Int[AnyArray, "samples K"]
    stops: Int[AnyArray, "samples K"]


def _draw_once(xp: ModuleType, config: CM3Config, seed, inputs: _Inputs, state: _State) -> _State:
    """Draw each sample's current mask once; keep it unless it is empty or overlaps another."""
    region = inputs.region
    number = (state.mask * (REPEATS + 1) + state.attempt) * _WORDS
    words = prng.bits(xp, seed, inputs.epochs, inputs.records, PrngStream.MASKS, _WORDS, number)
    whole = prng.chance(xp, words[:, :1], config.whole_segment)
    segment = prng.below(xp, words[:, 1], region.rank.max(1) + 1).astype(xp.int32)
    cuts = prng.below(xp, words[:, 1:3], (region.stop - region.first + 1)[:, None])
    cuts = region.first[:, None] + cuts.astype(xp.int32)
    low, high = cuts.min(1, keepdims=True), cuts.max(1, keepdims=True)

    # The first slot of the segment that the span overlaps most, or of the drawn one.
    overlap = xp.minimum(high, region.stops) - xp.maximum(low, region.starts)
    overlap = xp.where(whole, region.rank == segment[:, None], overlap)
    slot = xp.where(region.rank >= 0, overlap, 0).argmax(1)[:, None]
    first, last, unit = (
        xp.take_along_axis(part, slot, 1) for part in (region.starts, region.stops, region.units)
    )
    start = xp.where(whole, first, xp.maximum(low, first))
    stop = xp.where(whole, last, xp.minimum(high, last))
    widened = prng.chance(xp, words[:, 3:], config.picture_rows) & (start < stop)
    start = xp.where(widened, start - (start - first) % unit, start)
    stop = xp.where(widened, xp.minimum(stop + (first - stop) % unit, last), stop)

    clear = ((stop <= state.starts) | (state.stops <= start)).all(1)
    active = state.mask < inputs.masks
    good = active & clear & (start < stop)[:, 0]
    over = good | (active & (state.attempt == REPEATS))
    current = good[:, None] & (xp.arange(state.starts.shape[1]) == state.mask[:, None])
    return _State(
        state.mask + over.astype(xp.int32),
        xp.where(over, 0, state.attempt + 1),
        xp.where(current, start, state.starts),
        xp.where(current, stop, state.stops),
    )


def _until_done(xp: ModuleType, step, inputs: _Inputs, state: _State) -> _State:
    """Repeat `step` until every sample has all its masks.

    jax.numpy needs fixed shapes; numpy goes on with only the unfinished samples, which are few.
    """
    if xp is not np:
        return jax.lax.while_loop(
            lambda state: (state.mask < inputs.masks).any(), partial(step, inputs), state
        )
    while len(left := np.flatnonzero(state.mask < inputs.masks)):
        parts = jax.tree.map(lambda array: array[left], (inputs, state))
        for array, part in zip(state, step(*parts), strict=True):
            array[left] = part
    return state
