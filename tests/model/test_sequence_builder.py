"""Search, fetch and rotate on devices: the host's rows, and a bank that stays where it is."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from cm3jax.config import CM3Config
from cm3jax.learners.online import bank_variables
from cm3jax.model.sequence_builder import Queries, SequenceBuilder
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.sequence.fit import documents_shown, fit_samples
from cm3jax.sequence.rows import Places, Samples, build_rows
from cm3jax.sequence.spans import mask_counts
from tests.data.corpora import VOCAB, pair, write_bank

CONFIG = CM3Config(retrieved_weight=0.1, picture_rows=0.3)
LENGTH, COUNT, R, EPOCH = 96, 16, 2, 1
MESHES = pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=str)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """2,001 documents: no multiple of the devices."""
    return write_bank(tmp_path_factory.mktemp("bank"), documents=2001)


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(2)
    tokens = np.zeros((COUNT, 17), np.int32)
    lengths = np.zeros(COUNT, np.int32)
    for row in range(COUNT):
        ids = pair(rng)
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    vectors = rng.standard_normal((COUNT, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Queries(tokens, lengths, vectors, np.full((COUNT, 1), -1), np.arange(COUNT) + 7)


def make_mesh(sizes):
    auto = (jax.sharding.AxisType.Auto,) * 3
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=auto, devices=devices)


@functools.cache
def program(length=LENGTH):
    """Compiled once per shapes and mesh."""
    builder = SequenceBuilder(CONFIG, VOCAB, R, length)
    return jax.jit(lambda bank, queries, epoch: builder.apply({"bank": bank}, queries, 0, epoch))


def build(bank, queries, sizes):
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        return program()(bank_variables(bank, mesh), queries, EPOCH)


def host_rows(bank, queries, ids, scores):
    """The host path for documents that were chosen already."""
    found = [[bank.ids(int(i)) if i >= 0 else [] for i in row] for row in ids]
    lengths = np.asarray([[len(part) for part in row] for row in found], np.int32)
    documents = np.zeros((COUNT, R, int(lengths.max(initial=1))), np.int32)
    for place in np.ndindex(COUNT, R):
        documents[place][: lengths[place]] = found[place[0]][place[1]]
    count = documents_shown(np, 0, EPOCH, queries.records, R, CONFIG)
    lengths = np.where(np.arange(R) < count[:, None], lengths, 0)
    masks = mask_counts(np, 0, EPOCH, queries.records, CONFIG)
    fitted = fit_samples(np, lengths, scores, queries.lengths, masks, LENGTH)
    samples = Samples(
        documents,
        fitted.document_lengths,
        queries.tokens,
        queries.lengths,
        fitted.masks,
        queries.records,
    )
    place = np.arange(COUNT, dtype=np.int32)
    places = Places(place, 0 * place, 0 * place + 1)
    shape = (COUNT, LENGTH)
    return build_rows(np, samples, places, shape, seed=0, epoch=EPOCH, config=CONFIG, vocab=VOCAB)


def assert_same(left, right):
    for field in dataclasses.fields(left):
        np.testing.assert_array_equal(
            getattr(left, field.name), getattr(right, field.name), err_msg=field.name
        )


@MESHES
def test_rows_are_the_hosts(bank, queries, sizes):
    rows = build(bank, queries, sizes)
    nearest = ExactIndex(bank.vectors).search(queries.vectors, R)
    assert_same(rows.batch, host_rows(bank, queries, nearest.ids, nearest.scores))
    bare = documents_shown(np, 0, EPOCH, queries.records, R, CONFIG) == 0
    assert 0 < bare.sum() < COUNT
    np.testing.assert_array_equal(rows.ids, np.where(bare[:, None], -1, nearest.ids))
    np.testing.assert_allclose(rows.scores[~bare], nearest.scores[~bare], rtol=1e-6)


@MESHES
def test_excluded_documents_are_not_shown(bank, queries, sizes):
    nearest = ExactIndex(bank.vectors).search(queries.vectors, R + 1)
    without = dataclasses.replace(queries, exclude=nearest.ids[:, 1:2])
    rows = build(bank, without, sizes)
    shown = documents_shown(np, 0, EPOCH, queries.records, R, CONFIG) > 0
    np.testing.assert_array_equal(rows.ids[shown], nearest.ids[shown][:, [0, 2]])


def test_a_small_bank_gives_what_it_has(tmp_path, queries):
    """Three documents on eight devices, two of them excluded."""
    small = write_bank(tmp_path, documents=3)
    without = dataclasses.replace(queries, exclude=np.tile([[0, 2]], (COUNT, 1)))
    rows = build(small, without, (2, 2, 2))
    shown = documents_shown(np, 0, EPOCH, queries.records, R, CONFIG) > 0
    assert rows.ids[shown].tolist() == [[1, -1]] * int(shown.sum())


def test_banks_are_swapped_without_compiling_again(bank, queries):
    """Without a mesh."""
    run = program()
    variables = bank_variables(bank)
    first = run(variables, queries, EPOCH)
    compiled = run._cache_size()
    second = run({name: array[::-1] for name, array in variables.items()}, queries, EPOCH)
    assert run._cache_size() == compiled
    assert_same(first.batch, second.batch)
    shown = np.asarray(first.ids) >= 0
    np.testing.assert_array_equal(second.ids[shown], len(bank) - 1 - first.ids[shown])


def test_a_query_too_long_for_its_row_leaves_it_empty(bank, queries):
    rows = program(length=12)(bank_variables(bank), queries, EPOCH)
    long = queries.lengths + 2 > 12
    assert 0 < long.sum() < COUNT
    np.testing.assert_array_equal((rows.batch.segments > 0).any(1), ~long)
    assert not rows.batch.weights[long].any()


def test_without_a_bank_it_says_what_is_missing(queries):
    with pytest.raises(ValueError, match="bank_variables"):
        SequenceBuilder(CONFIG, VOCAB, R, LENGTH).apply({}, queries, 0, 0)


def collectives(text):
    """Elements of every result of every collective in compiled HLO."""
    sizes = []
    for line in text.splitlines():
        match = re.search(
            r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", line
        )
        for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]) if match else ():
            sizes.append(int(np.prod([int(n) for n in shape.split(",") if n])))
    return sizes


def test_the_bank_does_not_travel(bank, queries):
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        lowered = program().lower(bank_variables(bank, mesh), queries, EPOCH)
    sizes = collectives(lowered.compile().as_text())
    assert sizes, "search and fetch need collectives"
    assert max(sizes) <= COUNT * R * 17  # the documents that were fetched
    assert max(sizes) < len(bank)
    assert collectives("%x = f32[2001,8]{1,0} all-gather(%y), dimensions={0}") == [16008]
