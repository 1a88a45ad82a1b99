"""Attention: over a row of packed samples in training, over a two-part cache in decoding."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal

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
    segments: Int[Array, "B L"], backend: Literal["xla", "cudnn", "splash", "triton"]
) -> Attend:
    """Causal attention within the segments of rows, by one of the backends.

    They agree on every token that is no padding, and none keeps an array of L x L. `cudnn` never
    looks at the segments: rows must be of one segment, with padding only behind it.
    """
    if backend == "cudnn":
        return partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    if backend == "splash":
        return partial(_by_kernel, _splash_whole, segments)
    if backend == "triton":
        return partial(_by_kernel, _triton_whole, segments)
    return partial(_in_blocks, segments)


def _packed_mask(segments: Int[Array, "B L"], first: int, last: int) -> Bool[Array, "B 1 T S"]:
    """Which of the S tokens up to `last` the T tokens `first .. last - 1` of packed rows see.

    A token sees its segment up to itself. Padding is segment 0 and sees padding, so that no softmax
    is over an empty set.
    """
    seen = segments[:, :last]
    places = jnp.arange(seen.shape[1])
    same = seen[:, first:, None] == seen[:, None]
    return (same & (places[first:, None] >= places))[:, None]


def attend(
    queries: Float[Array, "B L H A"],
    keys: Float[Array, "B S K A"],
    values: Float[Array, "B S K A"],
    mask: Bool[Array, "B 1 #L S"],
) -> Float[Array, "B L H A"]:
    """Softmax attention with scale A**-0.5; scores and softmax in float32.

    H is a multiple of K: key head k serves the H / K query heads from k H / K on.
    """
    return attend_kept(queries, KeyValues.of_tokens(keys, values), mask)


def attend_kept(
    queries: Float[Array, "B L H A"], kept: KeyValues, mask: Bool[Array, "B 1 #L S"]
) -> Float[Array, "B L H A"]:
    """`attend` to keys and values as the cache has them."""
    kept = kept.widened(queries.dtype)
    by_key = _by_key(queries, kept.keys.shape[1])
    return _by_token(_weighted(by_key, kept.keys, kept.values, mask)[0])


def _by_key(queries: Float[Array, "B L H A"], heads: int) -> Float[Array, "B K G L A"]:
    """Queries by the key head that they share.

    Heads are next to the batch: left in the middle, CPUs multiply them one by one.
    """
    rows, length, _, width = queries.shape
    return queries.swapaxes(1, 2).reshape(rows, heads, -1, length, width)


def _by_token(attended: Float[Array, "B K G L A"]) -> Float[Array, "B L H A"]:
    rows, *_, length, width = attended.shape
    return attended.reshape(rows, -1, length, width).swapaxes(1, 2)


def _scores(queries, keys, mask):
    scores = jnp.einsum("bkgla,bksa->bkgls", queries, keys, preferred_element_type=jnp.float32)
    return jnp.where(mask[:, None], scores * queries.shape[-1] ** -0.5, -jnp.inf)


def _weighted(queries, keys, values, mask):
    """Values by the softmax of scores [B K G L A], and the log of the softmax's sum [B K G L 1]."""
    scores = _scores(queries, keys, mask)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # it changes no answer
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(values.dtype)
    attended = jnp.einsum("bkgls,bksa->bkgla", weights, values, preferred_element_type=jnp.float32)
    return (attended / total).astype(queries.dtype), top + jnp.log(total)


def _in_blocks(
    segments: Int[Array, "B L"],
    queries: Float[Array, "B L H A"],
    keys: Float[Array, "B L K A"],
    values: Float[Array, "B L K A"],
) -> Float[Array, "B L H A"]:
    """`attend` within segments, a block of tokens after another to what stands up to its end.

    Nearly half of the scores, those of later tokens, are never computed.
    """
    kept = KeyValues.of_tokens(keys, values)
    return _by_token(_causal(_by_key(queries, keys.shape[2]), kept.keys, kept.values, segments))


def _blocks(length: int) -> list[tuple[int, int]]:
    """First token and end of each block: eight, or those of 128 tokens where that is fewer."""
    size = max(128, -(-length // 8))
    return [(first, min(first + size, length)) for first in range(0, length, size)]


@jax.custom_vjp
def _causal(
    queries: Float[Array, "B K G L A"],
    keys: Float[Array, "B K L A"],
    values: Float[Array, "B K L A"],
    segments: Int[Array, "B L"],
) -> Float[Array, "B K G L A"]:
    """`_in_blocks` with heads in front. No weights are kept: the backward pass computes them again
    from their sums (arXiv 2205.14135, section 3.1)."""
    return _causal_forward(queries, keys, values, segments)[0]


def _causal_forward(queries, keys, values, segments):
    found = [
        _weighted(
            queries[..., first:last, :],
            keys[:, :, :last],
            values[:, :, :last],
            _packed_mask(segments, first, last),
        )
        for first, last in _blocks(segments.shape[1])
    ]
    attended, log_total = (jnp.concatenate(parts, axis=3) for parts in zip(*found, strict=True))
    return attended, (queries, keys, values, segments, attended, log_total)


def _causal_backward(known, slope):
    """With weights p, dp the gradient by them and o the answer, that by scores is
    p * (dp - sum(p * dp)), where the sum equals that of o * do.

    Scores are [B K G S T] here, keys first: two of the three products that follow need them so, and
    CPUs would transpose them in memory for each.
    """
    queries, keys, values, segments, attended, log_total = known
    wide = {"preferred_element_type": jnp.float32}
    # Not a product and a sum, which XLA's CPU backend makes twenty times slower in this shape.
    shares = jnp.einsum("bkgla,bkgla->bkgl", slope, attended, **wide)
    slopes = []
    for first, last in _blocks(segments.shape[1]):
        q, do = (x[..., first:last, :] for x in (queries, slope))
        share, log_z = (x[..., None, first:last] for x in (shares, log_total[..., 0]))
        k, v = keys[:, :, :last], values[:, :, :last]
        mask = _packed_mask(segments, first, last).swapaxes(-1, -2)[:, None]
        scores = jnp.einsum("bksa,bkgla->bkgsl", k, q, **wide) * queries.shape[-1] ** -0.5
        weights = jnp.where(mask, jnp.exp(scores - log_z), 0.0)
        by_weights = jnp.einsum("bksa,bkgla->bkgsl", v, do, **wide)
        by_scores = weights * (by_weights - share) * queries.shape[-1] ** -0.5
        weights, by_scores = (x.astype(queries.dtype) for x in (weights, by_scores))
        unseen = [(0, 0)] * 2 + [(0, segments.shape[1] - last), (0, 0)]
        by_keys = jnp.einsum("bkgsl,bkgla->bksa", by_scores, q, **wide)
        by_values = jnp.einsum("bkgsl,bkgla->bksa", weights, do, **wide)
        slopes.append(
            (
                jnp.einsum("bkgsl,bksa->bkgla", by_scores, k, **wide),
                jnp.pad(by_keys, unseen),
                jnp.pad(by_values, unseen),
            )
        )
    of_queries, of_keys, of_values = zip(*slopes, strict=True)
    return (
        jnp.concatenate(of_queries, axis=3).astype(queries.dtype),
        reduce(jnp.add, of_keys).astype(keys.dtype),
        reduce(jnp.add, of_values).astype(values.dtype),
        None,
    )


_causal.defvjp(_causal_forward, _causal_backward)


def _by_kernel(
    kernel: Callable[..., Float[Array, "B L H A"]],
    segments: Int[Array, "B L"],
    queries: Float[Array, "B L H A"],
    keys: Float[Array, "B L K A"],
    values: Float[Array, "B L K A"],
) -> Float[Array, "B L H A"]:
    """`attend` within segments by a kernel of Pallas; L is a multiple of 128."""
    rows, heads = ("batch", None), ("batch", None, "heads", None)
    # XLA cannot cut a kernel as it cuts its own operations.
    shared = partition.on_each_device(kernel, (rows, heads, heads, heads), heads)
    return shared(segments, queries, keys, values)


def _splash_whole(segments, queries, keys, values):
    """The kernel for TPUs on one device."""
    # The import takes a second, which only runs on TPUs should wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads, width = queries.shape[1:]
    block = next(size for size in (512, 256, 128) if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
        block_sizes=splash_attention.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        interpret=partition.platform() == "cpu",
    )
    by_head = (x.swapaxes(1, 2) for x in (queries * width**-0.5, keys, values))
    segment_ids = splash_attention.SegmentIds(segments, segments)
    return jax.vmap(kernel)(*by_head, segment_ids).swapaxes(1, 2)


def _triton_whole(segments, queries, keys, values):
    """The kernel for GPUs on one device."""
    from jax.experimental.pallas.ops.gpu import attention as triton_attention

    # It knows no shared heads: each query head gets a copy of its keys and values.
    shared = queries.shape[2] // keys.shape[2]
    keys, values = (jnp.repeat(x, shared, axis=2) for x in (keys, values))
    return triton_attention.mha(
        queries,
        keys,
        values,
        segments,
        sm_scale=queries.shape[-1] ** -0.5,
        causal=True,
        interpret=partition.platform() == "cpu",
    )


def attend_cached(queries: Float[Array, "B T H A"], cache: LayerCache) -> Float[Array, "B T H A"]:
    """Attention of T new tokens per row to their prompt's prefix and their own suffix.

    The suffix already holds the new tokens, at `lengths .. lengths + T - 1`; token t sees those up
    to its own. Both parts share one softmax: their maxima and sums are merged, so the prefix is
    read once per prompt, not once per row. Heads are shared as in `attend`.
    """
    rows, steps, heads, width = queries.shape
    prefix, suffix = (part.widened(queries.dtype) for part in (cache.prefix, cache.suffix))
    prompts = len(cache.prefix_lengths)
    key_heads = prefix.keys.shape[1]
    # Prompt, sample, token, key head, query head of it.
    queries = queries.reshape(prompts, -1, steps, key_heads, heads // key_heads, width)
    emitted: tuple[Any, Any] = (suffix.keys, suffix.values)
    keys, values = (x.reshape(prompts, -1, *x.shape[1:]) for x in emitted)
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
