"""Attention: over a row of packed samples in training, over a two-part cache in decoding."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.model.cache import KeyValues, LayerCache
from cm3jax.shapes import Array, Bool, Float, Int

Attend = Callable[
    [Float[Array, "B L H A"], Float[Array, "B S K A"], Float[Array, "B S K A"]],
    Float[Array, "B L H A"],
]
"""Attention of queries to keys and values, `attend` with its mask chosen."""


def row_attention(
    segments: Int[Array, "B L"], backend: Literal["xla", "cudnn", "splash"]
) -> Attend:
    """Causal attention within the segments of rows, by one of the backends.

    They agree on every token that is no padding. `cudnn` never looks at the segments: rows must be
    of one segment, with padding only behind it. No backend but `xla` makes an array of L x L.
    """
    if backend == "cudnn":
        return partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    if backend == "splash":
        return partial(_splash, segments)
    return partial(attend, mask=packed_mask(segments))


def packed_mask(segments: Int[Array, "B L"]) -> Bool[Array, "B 1 L L"]:
    """Who sees whom in packed rows: earlier tokens of the same segment, and oneself.

    Padding is segment 0 and sees padding, so that no softmax is over an empty set.
    """
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segments[:, :, None] == segments[:, None, :]
    return (same & causal)[:, None]


def attend(
    queries: Float[Array, "B L H A"],
    keys: Float[Array, "B S K A"],
    values: Float[Array, "B S K A"],
    mask: Bool[Array, "B 1 #L S"],
) -> Float[Array, "B L H A"]:
    """Softmax attention with scale A**-0.5; scores and softmax in float32.

    H is a multiple of K: key head k serves the H / K query heads from k H / K on.
    """
    # Heads are moved next to the batch first: left in the middle, CPUs multiply them one by one.
    return attend_kept(queries, KeyValues.of_tokens(keys, values), mask)


def attend_kept(
    queries: Float[Array, "B L H A"], kept: KeyValues, mask: Bool[Array, "B 1 #L S"]
) -> Float[Array, "B L H A"]:
    """`attend` to keys and values as the cache has them."""
    rows, length, heads, width = queries.shape
    queries = queries.swapaxes(1, 2).reshape(rows, kept.keys.shape[1], -1, length, width)
    scores = jnp.einsum("bkhla,bksa->bkhls", queries, kept.keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * width**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(kept.values.dtype)
    attended = jnp.einsum("bkhls,bksa->bkhla", weights, kept.values)
    return attended.reshape(rows, heads, length, width).swapaxes(1, 2)


def _splash(
    segments: Int[Array, "B L"],
    queries: Float[Array, "B L H A"],
    keys: Float[Array, "B L K A"],
    values: Float[Array, "B L K A"],
) -> Float[Array, "B L H A"]:
    """`attend` within segments by the kernel for TPUs; L is a multiple of 128."""
    rows, heads = ("batch", None), ("batch", None, "heads", None)
    # XLA cannot cut a kernel as it cuts its own operations.
    kernel = partition.on_each_device(_splash_whole, (rows, heads, heads, heads), heads)
    return kernel(segments, queries, keys, values)


def _splash_whole(segments, queries, keys, values):
    """`_splash` on one device."""
    # The import takes a second, which only runs on TPUs should wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads, width = queries.shape[1:]
    block = next(size for size in (512, 256, 128) if length % size == 0)
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
        block_sizes=splash_attention.BlockSizes(*[block] * 8),
        head_shards=1,
        q_seq_shards=1,
        interpret=jax.default_backend() == "cpu",
    )
    by_head = (x.swapaxes(1, 2) for x in (queries * width**-0.5, keys, values))
    segment_ids = splash_attention.SegmentIds(segments, segments)
    return jax.vmap(kernel)(*by_head, segment_ids).swapaxes(1, 2)


def attend_cached(queries: Float[Array, "B T H A"], cache: LayerCache) -> Float[Array, "B T H A"]:
    """Attention of T new tokens per row to their prompt's prefix and their own suffix.

    The suffix already holds the new tokens, at `lengths .. lengths + T - 1`; token t sees those up
    to its own. Both parts share one softmax: their maxima and sums are merged, so the prefix is
    read once per prompt, not once per row. Heads are shared as in `attend`.
    """
    rows, steps, heads, width = queries.shape
    prefix, suffix, prompts = cache.prefix, cache.suffix, len(cache.prefix_lengths)
    key_heads = prefix.keys.shape[1]
    # Prompt, sample, token, key head, query head of it.
    queries = queries.reshape(prompts, -1, steps, key_heads, heads // key_heads, width)
    keys, values = (x.reshape(prompts, -1, *x.shape[1:]) for x in (suffix.keys, suffix.values))
    wide = {"preferred_element_type": jnp.float32}

    known = jnp.arange(prefix.keys.shape[2]) < cache.prefix_lengths[:, None]
    to_prefix = jnp.einsum("pgtkha,pksa->pkghts", queries, prefix.keys, **wide)
    to_prefix = jnp.where(known[:, None, None, None, None], to_prefix * width**-0.5, -jnp.inf)
    seen = seen_of_suffix(cache, steps).reshape(prompts, -1, 1, 1, steps, keys.shape[3])
    to_own = jnp.einsum("pgtkha,pgkca->pgkhtc", queries, keys, **wide)
    to_own = jnp.where(seen, to_own * width**-0.5, -jnp.inf)

    top = jnp.maximum(to_prefix.max(-1).swapaxes(1, 2), to_own.max(-1))[..., None]
    to_prefix, to_own = jnp.exp(to_prefix - top.swapaxes(1, 2)), jnp.exp(to_own - top)
    total = to_prefix.sum(-1).swapaxes(1, 2) + to_own.sum(-1)
    to_prefix, to_own = (x.astype(queries.dtype) for x in (to_prefix, to_own))
    of_prefix = jnp.einsum("pkghts,pksa->pkghta", to_prefix, prefix.values, **wide)
    of_own = jnp.einsum("pgkhtc,pgkca->pgkhta", to_own, values, **wide)
    attended = (of_prefix.swapaxes(1, 2) + of_own) / total[..., None]
    attended = attended.reshape(rows, heads, steps, width).swapaxes(1, 2)
    return attended.astype(queries.dtype)


def seen_of_suffix(cache: LayerCache, steps: int) -> Bool[Array, "B T C"]:
    """Which entries of its suffix each of T new tokens sees: up to its own."""
    last = cache.lengths[:, None] + jnp.arange(steps)
    return jnp.arange(cache.suffix.keys.shape[2]) <= last[..., None]
