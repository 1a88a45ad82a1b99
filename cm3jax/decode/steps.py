"""The programs that run on the devices: prompts into slots, and a chunk of passes.

A slot holds a prompt and G samples that share its prefix in the cache. A guidance stream is another
prefix with the same samples, so P slots have P * W * G rows, slot by slot and in each stream by
stream. A pass reads a window of ids per row: the newest, and guesses of what follows it
(`drafts.py`). It emits what it draws as long as the guesses before it are right (`speculate.py`);
without guesses that is one id.
"""

import dataclasses
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import DecoderConfig
from cm3jax.decode import grammar, sampling, speculate
from cm3jax.decode.drafts import Drafts
from cm3jax.decode.plan import CHUNK, ProgramShape
from cm3jax.model.cache import NONE, Cache, KeyValues, empty_entries, start_cache
from cm3jax.shapes import AnyArray, Array, Bool, Float, Int, UInt32

T = TypeVar("T")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "keys", "temperatures", "contrasted", "scales"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class RowConstants:
    """What stays the same while a sample is decoded."""

    table: grammar.GrammarTable
    keys: UInt32[AnyArray, "B 2"]
    temperatures: Float[AnyArray, " B"]
    contrasted: Bool[AnyArray, " B"]
    scales: Float[AnyArray, "B U"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache", "last", "states", "drafts"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """What a pass changes."""

    cache: Cache
    last: Int[Array, " R"]
    """The newest id of every row of every stream, not yet in the cache."""
    states: Int[Array, " B"]
    """The state of each sample's automaton."""
    drafts: Drafts
    """What samples may emit next."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "lengths", "newest", "last", "slots", "rows", "drafts"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class New:
    """Prompts to admit; those of slot P are padding."""

    tokens: Int[AnyArray, "new W S"]
    """All ids of the prompts but the last."""
    lengths: Int[AnyArray, "new W"]
    newest: Int[AnyArray, "new W"]
    """The last of these ids; `NONE` if there are none."""
    last: Int[AnyArray, "new W"]
    """The last id of a prompt is fed by the first pass, so that all passes are alike."""
    slots: Int[AnyArray, " new"]
    rows: RowConstants
    """The constants of their samples, prompt by prompt."""
    drafts: Drafts
    """What their samples may emit, likewise."""


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "logprobs", "free"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Emitted:
    """What a few passes emitted."""

    ids: Int[Array, "*T B"]
    """`<pad>` where a pass emitted fewer ids than its window has."""
    logprobs: Float[Array, "*T B"]
    """0 where nothing was sampled, which probability 1 is too."""
    free: Bool[Array, "*T B"]


@partial(jax.jit, static_argnums=(0, 1, 2))
def start(config: DecoderConfig, shape: ProgramShape, room: int) -> State:
    """Slots without prompts, with room for `room` emitted tokens."""
    prompts = shape.slots * shape.streams
    sizes = (prompts, config.groups, shape.width)
    empty = [
        KeyValues(*(empty_entries(sizes, config) for _ in range(2))) for _ in range(config.layers)
    ]
    nothing = (jnp.zeros(prompts, jnp.int32), jnp.full(prompts, NONE, jnp.int32))
    cache = start_cache(empty, *nothing, shape.samples, room)
    last = jnp.zeros(prompts * shape.samples, jnp.int32)
    samples = shape.slots * shape.samples
    drafts = Drafts.empty(samples, *shape.drafts)
    return _laid_out(State(cache, last, jnp.zeros(samples, jnp.int32), drafts))


def resized(state: State, capacity: int) -> State:
    """The state with room for `capacity` emitted tokens; the old arrays are gone.

    What is beyond a smaller room belongs to samples that are done.
    """
    suffix = []
    for layer in state.cache.suffix:
        suffix.append(_resized_layer(layer, capacity))
        for part in jax.tree.leaves(layer):  # one layer is there twice, not all
            part.delete()
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, suffix=tuple(suffix)))


@partial(jax.jit, static_argnames="capacity")
def _resized_layer(layer: KeyValues, capacity: int) -> KeyValues:
    def fit(part: Array) -> Array:
        part = part[:, :, :capacity]
        more = [(0, 0), (0, 0), (0, capacity - part.shape[2]), (0, 0)]
        return partition.constrain(jnp.pad(part, more), "batch", "heads", None, None)

    return jax.tree.map(fit, layer)


def _laid_out(state: State) -> State:
    """The state between two programs: rows and heads of the cache are cut over the mesh."""
    cache, heads = state.cache, ("batch", "heads", None, None)
    prefix, suffix = jax.tree.map(
        lambda x: partition.constrain(x, *heads), (cache.prefix, cache.suffix)
    )
    of_rows = (cache.prefix_lengths, cache.lengths, cache.newest, state.last, state.states)
    prefix_lengths, lengths, newest, last, states, drafts = jax.tree.map(
        partition.shard_rows, (*of_rows, state.drafts)
    )
    return State(Cache(prefix, prefix_lengths, suffix, lengths, newest), last, states, drafts)


@partial(jax.jit, static_argnames=("model", "samples"), donate_argnames=("rows", "state"))
def prefill(model, variables, rows: RowConstants, state: State, new: New, samples: int):
    """Rows and state with new prompts in their slots.

    Without tokens no prompt is read: its keys and values are put into the state otherwise.
    """
    streams, width = new.tokens.shape[1:]
    cache, lengths = state.cache, new.lengths.reshape(-1)
    # Padding goes behind the last slot, where it is dropped.
    places = (new.slots[:, None] * streams + jnp.arange(streams)).reshape(-1)
    of_prompt = (places[:, None] * samples + jnp.arange(samples)).reshape(-1)
    of_sample = (new.slots[:, None] * samples + jnp.arange(samples)).reshape(-1)

    def put(old, more, at):
        return old.at[at].set(more, mode="drop")

    prefix = cache.prefix
    if width:
        tokens = new.tokens.reshape(-1, width)
        _, found = model.apply(variables, tokens, lengths, method="prefill")
        found = tuple(map(KeyValues.kept_like, found, prefix))
        prefix = jax.tree.map(lambda old, more: put(old, more, places), prefix, found)
    cache = Cache(
        prefix,
        put(cache.prefix_lengths, lengths, places),
        cache.suffix,
        put(cache.lengths, 0, of_prompt),
        put(cache.newest, jnp.repeat(new.newest.reshape(-1), samples), of_prompt),
    )
    last = put(state.last, jnp.repeat(new.last.reshape(-1), samples), of_prompt)
    rows, drafts = jax.tree.map(
        lambda old, more: partition.shard_rows(put(old, more, of_sample)),
        (rows, state.drafts),
        (new.rows, new.drafts),
    )
    return rows, _laid_out(State(cache, last, put(state.states, 0, of_sample), drafts))


@partial(
    jax.jit,
    static_argnames=("model", "vocab", "greedy", "passes", "window", "share"),
    donate_argnames="state",
)
def chunk(
    model,
    vocab,
    variables,
    method: sampling.Method,
    greedy: bool,
    rows: RowConstants,
    state: State,
    passes: int = CHUNK,
    window: int = 1,
    share: int = 1,
) -> tuple[State, Emitted, Bool[Array, " B"], Int[Array, ""]]:
    """The state after a chunk, what was emitted, which samples are done, and the passes it took.

    Windows of several ids end the chunk as soon as all samples are done. With a `share`, only the
    first P / `share` slots run, and only of them is told; the others stay as they are.
    """
    whole = state
    if share > 1:
        method, rows, state = _front((method, rows, state), share)
    step = partial(_pass, model, vocab, variables, method, greedy, window, rows)
    if window == 1:
        before = _emitted(state)
        state, emitted = jax.lax.scan(lambda state, _: step(state), state, None, passes)
        drafts = state.drafts.followed_by(before, emitted.ids[:, 0])
        state, taken = dataclasses.replace(state, drafts=drafts), jnp.int32(passes)
    else:
        state, emitted, taken = _until_done(step, rows, state, vocab, passes, window)
    done = state.states >= rows.table.lengths
    # What the host reads is whole on every device, hence in every process.
    emitted, done, taken = jax.tree.map(partition.constrain, (emitted, done, taken))
    if share > 1:
        state = _with_front(whole, state)
    return _laid_out(state), emitted, done, taken


def _front(tree: T, share: int) -> T:
    """What there is of the first slots: all arrays are in the slots' order."""
    return jax.tree.map(lambda x: x[: len(x) // share], tree)


def _with_front(whole: State, front: State) -> State:
    """The state of all slots after a chunk of the first ones, which leaves prompts as they are."""
    cache = dataclasses.replace(
        front.cache, prefix=whole.cache.prefix, prefix_lengths=whole.cache.prefix_lengths
    )
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=0),
        whole,
        dataclasses.replace(front, cache=cache),
    )


def _until_done(step, rows: RowConstants, state: State, vocab, passes: int, window: int):
    """As a scan of passes, but without those in which no sample has anything left to emit."""
    shape = (passes, window, len(state.states))
    nothing = Emitted(
        jnp.full(shape, vocab.pad, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, bool)
    )

    def goes_on(carry):
        state, _, taken = carry
        return (taken < passes) & jnp.any(state.states < rows.table.lengths)

    def body(carry):
        state, emitted, taken = carry
        state, more = step(state)
        return (
            state,
            jax.tree.map(lambda all_, one: all_.at[taken].set(one), emitted, more),
            taken + 1,
        )

    return jax.lax.while_loop(goes_on, body, (state, nothing, jnp.int32(0)))


def compiled_programs() -> int:
    """How many programs of `prefill` and `chunk` this process has compiled."""
    # jax gives the count of a function's programs under a private name only.
    return sum(f._cache_size() for f in (prefill, chunk))  # type: ignore[attr-defined]


def _pass(model, vocab, variables, method, greedy, window, rows: RowConstants, state: State):
    """The state after one pass over a window, and what it emitted, [window, B].

    Samples that are done emit `<pad>`.
    """
    kinds = grammar.kinds(vocab)
    emitted = _emitted(state)
    sources = state.drafts.sources(emitted, window - 1, vocab)
    drafts = state.drafts.chosen(sources)
    drafts, states = speculate.follow(rows.table, state.states, drafts, kinds)
    read = jnp.concatenate([state.last[:, None], _of_rows(drafts, state)], axis=1)
    logits, cache = _forward(model, variables, read, state.cache)

    def choose(logits, states, emitted):
        """An id of each sample in these states, its log-probability, and whether it was drawn."""
        allowed = grammar.permitted(rows.table, states, emitted, kinds)
        scores = method.scores(logits, allowed, rows.scales.T, rows.temperatures, rows.contrasted)
        # Where no sample needs noise, drawing it would cost more than all else but the weights.
        noise = None if greedy else sampling.noise(rows.keys, emitted, vocab.size)
        drawn = sampling.sample_token(scores, noise, rows.temperatures == 0)
        logprob = jax.nn.log_softmax(jnp.where(allowed, logits[0], -jnp.inf))
        logprob = jnp.take_along_axis(logprob, drawn[:, None], axis=-1)[:, 0]
        done, forced = states >= rows.table.lengths, grammar.forced(rows.table, states)
        free = ~done & (forced == grammar.FREE)
        ids = jnp.where(free, drawn, jnp.where(done, vocab.pad, forced))
        return Emitted(ids, jnp.where(free, logprob, 0.0), free)

    places = emitted[:, None] + jnp.arange(window)
    found = jax.vmap(choose, in_axes=(2, 1, 1))(_by_stream(logits, state), states, places)
    alive = rows.table.lengths > states.T
    kept = speculate.accepted(drafts, found.ids) & alive
    count = kept.sum(0)

    guessed = state.drafts
    if window > 1:
        guessed = guessed.after(emitted, drafts, found.ids, kept, sources)
    found = Emitted(
        jnp.where(kept, found.ids, vocab.pad),
        jnp.where(kept, found.logprobs, 0.0),
        kept & found.free,
    )
    last = jnp.maximum(count - 1, 0)
    newest = jnp.take_along_axis(found.ids, last[None], axis=0)[0]
    before = jnp.take_along_axis(states, last[:, None], axis=1)[:, 0]
    after = State(
        cache.shortened(state.cache, read, _of_rows(count, state)),
        _of_rows(newest, state),
        jnp.where(count > 0, grammar.advance(rows.table, before, newest, kinds), state.states),
        guessed,
    )
    return after, found


def _emitted(state: State) -> Int[Array, " B"]:
    """How many ids each sample has emitted."""
    return _by_stream(state.cache.lengths, state)[0]


def _sizes(state: State) -> tuple[int, int, int]:
    """P, W and G."""
    rows, prefixes, samples = map(len, (state.last, state.cache.prefix_lengths, state.states))
    each = rows // prefixes
    return samples // each, rows // samples, each


def _by_stream(x: Array, state: State) -> Array:
    """What there is of every row, for every stream of every sample: (R, ...) as (W, B, ...)."""
    slots, streams, samples = _sizes(state)
    return (
        x.reshape(slots, streams, samples, *x.shape[1:])
        .swapaxes(0, 1)
        .reshape(streams, -1, *x.shape[1:])
    )


def _of_rows(x: Array, state: State) -> Array:
    """What there is of every sample, for each of its rows: (B, ...) as (R, ...)."""
    slots, streams, samples = _sizes(state)
    rest = x.shape[1:]
    wide = jnp.broadcast_to(x.reshape(slots, 1, samples, *rest), (slots, streams, samples, *rest))
    return wide.reshape(len(state.last), *rest)


def _forward(
    model, variables, read: Int[Array, "R T"], cache: Cache
) -> tuple[Float[Array, "R T V"], Cache]:
    """Logits after each of these ids, and the cache with them."""
    hidden, cache = model.apply(variables, read, cache, method="extend")
    return partition.shard_rows(model.apply(variables, hidden, method="logits")), cache
