"""Attention: over a row of packed samples in training, over a two-part cache in decoding."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from cm3jax import partition
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
    rows, length, heads, width = queries.shape
    shared = heads // keys.shape[2]
    # Heads are moved next to the batch first: left in the middle, CPUs multiply them one by one.
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    queries = queries.reshape(rows, -1, shared, length, width)
    scores = jnp.einsum("bkhla,bksa->bkhls", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * width**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    attended = jnp.einsum("bkhls,bksa->bkhla", weights, values)
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


def attend_cached(
    queries: Float[Array, "B T H A"],
    prefix: tuple[Float[Array, "P S K A"], Float[Array, "P S K A"]],
    prefix_lengths: Int[Array, " P"],
    suffix: tuple[Float[Array, "B C K A"], Float[Array, "B C K A"]],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T H A"]:
    """Attention of T new tokens per row to their prompt's prefix and their own suffix.

    The suffix already holds the new tokens, at `lengths .. lengths + T - 1`; token t sees those up
    to its own. Both parts share one softmax: their maxima and sums are merged, so the prefix is
    read once per prompt, not once per row. Heads are shared as in `attend`.
    """
    rows, steps, heads, width = queries.shape
    prompts, _, key_heads, _ = prefix[0].shape
    scaled = queries.astype(jnp.float32) * width**-0.5
    scaled = scaled.reshape(rows, steps, key_heads, heads // key_heads, width)
    by_prompt = scaled.reshape(prompts, rows // prompts, *scaled.shape[1:])

    known = jnp.arange(prefix[0].shape[1]) < prefix_lengths[:, None]
    to_prefix = jnp.einsum("pgtkha,pska->pgkhts", by_prompt, prefix[0].astype(jnp.float32))
    to_prefix = jnp.where(known[:, None, None, None, None], to_prefix, -jnp.inf)
    grouped = to_prefix.shape
    to_prefix = to_prefix.reshape(rows, *grouped[2:])

    last = lengths[:, None] + jnp.arange(steps)
    seen = jnp.arange(suffix[0].shape[1]) <= last[..., None]
    to_suffix = jnp.einsum("btkha,bcka->bkhtc", scaled, suffix[0].astype(jnp.float32))
    to_suffix = jnp.where(seen[:, None, None], to_suffix, -jnp.inf)

    top = jnp.maximum(to_prefix.max(-1), to_suffix.max(-1))[..., None]
    to_prefix, to_suffix = jnp.exp(to_prefix - top), jnp.exp(to_suffix - top)
    total = to_prefix.sum(-1) + to_suffix.sum(-1)
    of_prefix = jnp.einsum(
        "pgkhts,pska->pgtkha", to_prefix.reshape(grouped), prefix[1].astype(jnp.float32)
    ).reshape(scaled.shape)
    of_suffix = jnp.einsum("bkhtc,bcka->btkha", to_suffix, suffix[1].astype(jnp.float32))
    attended = (of_prefix + of_suffix) / jnp.moveaxis(total, 3, 1)[..., None]
    return attended.reshape(queries.shape).astype(queries.dtype)
