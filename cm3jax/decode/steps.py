"""The programs that run on the devices: prompts into slots, and a chunk of steps.

A slot holds a prompt and G samples that share its prefix in the cache. A guidance stream is another
prefix with the same samples, so P slots have P * W * G rows, slot by slot and in each stream by
stream.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import DecoderConfig
from cm3jax.decode import grammar, sampling
from cm3jax.decode.plan import CHUNK, ProgramShape
from cm3jax.model.cache import Cache, KeyValues, start_cache
from cm3jax.shapes import Array, Bool, Float, Int, UInt32


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "keys", "temperatures", "contrasted", "scales"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class RowConstants:
    """What stays the same while a sample is decoded."""

    table: grammar.GrammarTable
    keys: UInt32[Array, "B 2"]
    temperatures: Float[Array, " B"]
    contrasted: Bool[Array, " B"]
    scales: Float[Array, "B U"]


@partial(jax.tree_util.register_dataclass, data_fields=["cache", "last", "states"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """What a step changes."""

    cache: Cache
    last: Int[Array, " R"]
    """The newest id of every row of every stream, not yet in the cache."""
    states: Int[Array, " B"]
    """The state of each sample's automaton."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "lengths", "last", "slots", "rows"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class New:
    """Prompts to admit; those of slot P are padding."""

    tokens: Int[Array, "new W S"]
    """All ids of the prompts but the last."""
    lengths: Int[Array, "new W"]
    last: Int[Array, "new W"]
    """The last id of a prompt is fed by the first step, so that all steps are alike."""
    slots: Int[Array, " new"]
    rows: RowConstants
    """The constants of their samples, prompt by prompt."""


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "logprobs", "free"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Emitted:
    """What a few steps emitted."""

    ids: Int[Array, "*T B"]
    """`<pad>` after a sample's last."""
    logprobs: Float[Array, "*T B"]
    """0 where nothing was sampled, which probability 1 is too."""
    free: Bool[Array, "*T B"]


@partial(jax.jit, static_argnums=(0, 1))
def start(config: DecoderConfig, shape: ProgramShape) -> State:
    """Slots without prompts."""
    prompts = shape.slots * shape.streams
    sizes = (prompts, config.groups, shape.width, config.head_width)
    empty = [
        KeyValues(*(jnp.zeros(sizes, config.dtype) for _ in range(2))) for _ in range(config.layers)
    ]
    cache = start_cache(empty, jnp.zeros(prompts, jnp.int32), shape.samples, shape.capacity)
    last = jnp.zeros(prompts * shape.samples, jnp.int32)
    return _laid_out(State(cache, last, jnp.zeros(shape.slots * shape.samples, jnp.int32)))


def resized(state: State, capacity: int) -> State:
    """The state with room for `capacity` emitted tokens; the old arrays are gone.

    What stands beyond a smaller room is of samples that are done.
    """
    suffix = []
    for layer in state.cache.suffix:
        suffix.append(_resized_layer(layer, capacity))
        layer.keys.delete()  # one layer is there twice, not all
        layer.values.delete()
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
    prefix_lengths, lengths, last, states = map(
        partition.shard_rows, (cache.prefix_lengths, cache.lengths, state.last, state.states)
    )
    return State(Cache(prefix, prefix_lengths, suffix, lengths), last, states)


@partial(jax.jit, static_argnames=("model", "samples"), donate_argnames=("rows", "state"))
def prefill(model, variables, rows: RowConstants, state: State, new: New, samples: int):
    """Rows and state with new prompts in their slots."""
    streams, width = new.tokens.shape[1:]
    tokens, lengths = new.tokens.reshape(-1, width), new.lengths.reshape(-1)
    _, found = model.apply(variables, tokens, lengths, method="prefill")

    cache = state.cache
    # Padding goes behind the last slot, where it is dropped.
    places = (new.slots[:, None] * streams + jnp.arange(streams)).reshape(-1)
    of_prompt = (places[:, None] * samples + jnp.arange(samples)).reshape(-1)
    of_sample = (new.slots[:, None] * samples + jnp.arange(samples)).reshape(-1)

    def put(old, more, at):
        return old.at[at].set(more, mode="drop")

    cache = Cache(
        jax.tree.map(lambda old, more: put(old, more, places), cache.prefix, found),
        put(cache.prefix_lengths, lengths, places),
        cache.suffix,
        put(cache.lengths, 0, of_prompt),
    )
    last = put(state.last, jnp.repeat(new.last.reshape(-1), samples), of_prompt)
    rows = jax.tree.map(
        lambda old, more: partition.shard_rows(put(old, more, of_sample)), rows, new.rows
    )
    return rows, _laid_out(State(cache, last, put(state.states, 0, of_sample)))


@partial(jax.jit, static_argnames=("model", "vocab", "greedy", "steps"), donate_argnames="state")
def chunk(
    model,
    vocab,
    variables,
    method: sampling.Method,
    greedy: bool,
    rows: RowConstants,
    state: State,
    steps: int = CHUNK,
) -> tuple[State, Emitted, Bool[Array, " B"]]:
    """The state after a chunk, what was emitted, and which samples are done."""
    step = partial(_step, model, vocab, variables, method, greedy, rows)
    state, emitted = jax.lax.scan(step, state, None, steps)
    done = state.states >= rows.table.lengths
    # What the host reads is whole on every device, hence in every process.
    emitted, done = jax.tree.map(partition.constrain, (emitted, done))
    return _laid_out(state), emitted, done


def compiled_programs() -> int:
    """How many programs of `prefill` and `chunk` this process has compiled."""
    # jax gives the count of a function's programs under a private name only.
    return sum(f._cache_size() for f in (prefill, chunk))  # type: ignore[attr-defined]


def _step(model, vocab, variables, method, greedy, rows: RowConstants, state: State, _):
    """One more id of every sample; those that are done emit `<pad>`."""
    logits, cache = _forward(model, variables, state)
    logits = _by_stream(logits, state)
    emitted = _by_stream(state.cache.lengths, state)[0]
    kinds = grammar.kinds(vocab)
    allowed = grammar.permitted(rows.table, state.states, emitted, kinds)
    scores = method.scores(logits, allowed, rows.scales.T, rows.temperatures, rows.contrasted)
    # Where no sample needs noise, drawing it would cost more than all else but the weights.
    noise = None if greedy else sampling.noise(rows.keys, emitted, vocab.size)
    drawn = sampling.sample_token(scores, noise, rows.temperatures == 0)
    logprob = jax.nn.log_softmax(jnp.where(allowed, logits[0], -jnp.inf))
    logprob = jnp.take_along_axis(logprob, drawn[:, None], axis=-1)[:, 0]

    done = state.states >= rows.table.lengths
    forced = grammar.forced(rows.table, state.states)
    free = ~done & (forced == grammar.FREE)
    ids = jnp.where(free, drawn, jnp.where(done, vocab.pad, forced))
    states = grammar.advance(rows.table, state.states, ids, kinds)
    slots, streams, samples = _sizes(state)
    last = jnp.broadcast_to(ids.reshape(slots, 1, samples), (slots, streams, samples)).reshape(-1)
    return State(cache, last, states), Emitted(ids, jnp.where(free, logprob, 0.0), free)


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


def _forward(model, variables, state: State) -> tuple[Float[Array, "R V"], Cache]:
    """Logits after the newest id of every row, and the cache with that id in it."""
    hidden, cache = model.apply(variables, state.last[:, None], state.cache, method="extend")
    return partition.shard_rows(model.apply(variables, hidden[:, 0], method="logits")), cache
