"""The sequence builder on devices: search, fetch and rotate in one program.

It makes the rows that `cm3jax.sequence.rows` makes on the host, from a memory bank that is spread
over all devices: for training on what was retrieved just now, generation without a way through the
host, and banks that are swapped between two steps. Queries and what was found travel between
devices; the bank never does.
"""

import dataclasses
from functools import partial
from typing import Any, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from cm3jax import partition
from cm3jax.config import CM3Config
from cm3jax.sequence.fit import documents_shown, fit_samples
from cm3jax.sequence.rows import NONE, Batch, Places, Samples, build_rows
from cm3jax.sequence.spans import mask_counts
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Float, Int

_TOGETHER = 32
"""Queries that are scored against a device's whole share of the bank at a time."""


@no_type_check  # transformations also fill it with shapes, shardings and the like
@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "lengths", "vectors", "exclude", "records"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """Documents to learn or to continue, and what to search with."""

    tokens: Int[Array | np.ndarray, "B Q"]
    """Rendered documents."""
    lengths: Int[Array | np.ndarray, " B"]
    vectors: Float[Array | np.ndarray, "B E"]
    """Unit vectors of the same encoder as the bank's."""
    exclude: Int[Array | np.ndarray, "B X"]
    """Bank rows that must not be shown, e.g. the query's own; -1 as padding."""
    records: Int[Array | np.ndarray, " B"]
    """Which record each is: decides its draws."""


@partial(jax.tree_util.register_dataclass, data_fields=["batch", "ids", "scores"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class BuiltRows:
    """One sample per row, and what it was shown."""

    batch: Batch
    """A query that is too long for a row leaves its row empty."""
    ids: Int[Array, "B R"]
    """Bank rows of the documents shown, best first; -1 for none."""
    scores: Float[Array, "B R"]
    """Inner products with the query, -inf for none."""


@dataclasses.dataclass(frozen=True)
class _Axes:
    """Mesh axes by what they cut; empty without a mesh."""

    bank: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()


class SequenceBuilder(nn.Module):
    """Queries to CM3 rows with the best documents of the collection `bank`.

    `bank` holds `tokens` [M L], `lengths` [M] and `vectors` [M E], as `bank_variables` of the
    online learner makes them.
    Under `jax.set_mesh` the bank is cut along all mesh axes and queries and rows along the batch's.
    """

    config: CM3Config
    vocab: Vocab
    documents: int
    """Documents per query (R)."""
    length: int
    """Tokens of a row (L)."""

    @nn.compact
    def __call__(self, queries: Queries, seed: int, epoch: int | Int[Array, ""]) -> BuiltRows:
        """Search, fetch, and build one row of `length` tokens per query.

        Raises `ValueError` without the collection `bank`; there is nothing to `init`.
        """
        names = ("tokens", "lengths", "vectors")
        bank: dict[str, Any] = {name: self.get_variable("bank", name) for name in names}
        if any(array is None for array in bank.values()):
            raise ValueError("the collection `bank` is missing; pass what bank_variables returns")
        epoch = jnp.asarray(epoch)
        mesh = jax.sharding.get_abstract_mesh()
        build = partial(_build, self.config, self.vocab, self.documents, self.length, seed)
        if mesh.empty:
            return build(_Axes(), bank, queries, epoch)
        axes = _Axes(mesh.axis_names, partition.BATCH)
        rows, everywhere = PartitionSpec(axes.batch), PartitionSpec()
        return jax.shard_map(
            partial(build, axes),
            in_specs=(PartitionSpec(axes.bank), rows, everywhere),
            out_specs=rows,
            check_vma=False,  # it can't infer that what was gathered is equal everywhere
        )(bank, queries, epoch)


def _build(
    config: CM3Config,
    vocab: Vocab,
    documents: int,
    length: int,
    seed: int,
    axes: _Axes,
    bank: dict[str, Array],
    queries: Queries,
    epoch: Int[Array, ""],
) -> BuiltRows:
    """What one device does: `bank` and `queries` are its shares."""
    first = jax.lax.axis_index(axes.bank) * len(bank["lengths"]) if axes.bank else 0
    ids, scores = _search(axes, bank, queries, first, documents)
    tokens, lengths = _fetch(axes, bank, ids, first)
    ids, scores, tokens, lengths = (_own(axes, part) for part in (ids, scores, tokens, lengths))

    count = documents_shown(jnp, seed, epoch, queries.records, documents, config)
    lengths = jnp.where(jnp.arange(documents) < count[:, None], lengths, 0)
    masks = mask_counts(jnp, seed, epoch, queries.records, config)
    fitted = fit_samples(jnp, lengths, scores, queries.lengths, masks, length)
    shown = fitted.document_lengths > 0
    place = jnp.arange(len(queries.lengths), dtype=jnp.int32)
    samples = Samples(
        documents=tokens,
        document_lengths=fitted.document_lengths,
        query=queries.tokens,
        query_lengths=queries.lengths,
        masks=fitted.masks,
        records=queries.records,
    )
    places = Places(jnp.where(fitted.fits, place, -1), 0 * place, 0 * place + 1)
    shape = (len(place), length)
    batch = build_rows(
        jnp, samples, places, shape, seed=seed, epoch=epoch, config=config, vocab=vocab
    )
    return BuiltRows(batch, jnp.where(shown, ids, NONE), jnp.where(shown, scores, -jnp.inf))


def _search(axes: _Axes, bank, queries: Queries, first, documents: int):
    """Ids and scores [B R] of all queries' best documents, best first, on every device."""
    vectors, exclude = queries.vectors, queries.exclude
    if axes.batch:
        vectors, exclude = (
            jax.lax.all_gather(part, axes.batch, tiled=True) for part in (vectors, exclude)
        )
    real = bank["lengths"] > 0

    def best(query):
        vector, own = query
        scores = jnp.einsum("me,e->m", bank["vectors"], vector, precision="highest")
        scores = jnp.where(real, scores, -jnp.inf)
        # Shares hold few of the excluded documents, so each is struck out by its place.
        scores = scores.at[jnp.where(own >= first, own - first, len(scores))].set(
            -jnp.inf, mode="drop"
        )
        scores, places = jax.lax.top_k(scores, min(documents, len(scores)))
        return scores, first + places

    scores, ids = jax.lax.map(best, (vectors, exclude), batch_size=_TOGETHER)
    if axes.bank:
        # Shares come in order of their ids: of equal scores top_k takes the lower id.
        scores, ids = (
            jax.lax.all_gather(part, axes.bank, axis=1, tiled=True) for part in (scores, ids)
        )
    short = ((0, 0), (0, max(0, documents - scores.shape[1])))  # of a bank of fewer documents
    scores, ids = jnp.pad(scores, short, constant_values=-jnp.inf), jnp.pad(ids, short)
    scores, places = jax.lax.top_k(scores, documents)
    ids = jnp.take_along_axis(ids, places, axis=1)
    return jnp.where(scores > -jnp.inf, ids, NONE), scores


def _fetch(axes: _Axes, bank, ids, first):
    """Tokens [B R L] and lengths [B R] of documents: their owners give them, all others zeros."""
    place = ids - first
    mine = (place >= 0) & (place < len(bank["lengths"])) & (ids != NONE)
    place = jnp.where(mine, place, 0)
    tokens = jnp.where(mine[..., None], bank["tokens"][place], 0)
    lengths = jnp.where(mine, bank["lengths"][place], 0)
    return jax.lax.psum((tokens, lengths), axes.bank) if axes.bank else (tokens, lengths)


def _own(axes: _Axes, values):
    """This device's rows of what every device has for all queries."""
    if not axes.batch:
        return values
    rows = len(values) // jax.lax.axis_size(axes.batch)
    return jax.lax.dynamic_slice_in_dim(values, jax.lax.axis_index(axes.batch) * rows, rows)
