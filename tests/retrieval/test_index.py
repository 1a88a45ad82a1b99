import re

import jax
import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.index import SAVED, ExactIndex, ScannIndex, build_index, open_index
from cm3jax.retrieval.protocol import Neighbours


def _unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _clustered(count: int, width: int = 64, seed: int = 0):
    """Unit vectors around 200 centres, and queries near some of them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, width))
    vectors = _unit(
        centres[rng.integers(0, 200, count)] + 0.5 * rng.standard_normal((count, width))
    )
    queries = _unit(vectors[rng.integers(0, count, 300)] + 0.05 * rng.standard_normal((300, width)))
    return vectors, queries


def _literal(vectors, queries, k) -> Neighbours:
    """Sorts all scores; equal ones by id."""
    scores = queries @ vectors.T
    ids = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores))[:, :k]
    return Neighbours(ids, np.take_along_axis(scores, ids, axis=1))


def _mesh(*shape):
    names = ("data", "fsdp", "tensor")[: len(shape)]
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=auto)


@pytest.mark.parametrize("mesh", [None, (8,), (2, 2, 2)])
def test_exact_finds_the_best(mesh, monkeypatch):
    monkeypatch.setattr(ExactIndex, "chunk", 64)
    vectors, queries = _clustered(1003, 16)
    found = ExactIndex(vectors, _mesh(*mesh) if mesh else None).search(queries, 10)
    expected = _literal(vectors, queries, 10)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("mesh", [None, (8,)])
def test_equal_scores_in_the_order_of_ids(mesh, monkeypatch):
    monkeypatch.setattr(ExactIndex, "chunk", 16)
    vectors = np.zeros((300, 4), np.float32)
    vectors[np.arange(300), np.arange(300) % 2] = 1
    queries = np.eye(4, dtype=np.float32)[:2]
    found = ExactIndex(vectors, _mesh(*mesh) if mesh else None).search(queries, 20)
    np.testing.assert_array_equal(found.ids[0], np.arange(0, 40, 2))
    np.testing.assert_array_equal(found.ids[1], np.arange(1, 41, 2))


def test_small_banks_give_fewer():
    vectors, queries = _clustered(3, 8)
    for index in (ExactIndex(vectors), ExactIndex(vectors, _mesh(8)), ScannIndex.build(vectors)):
        assert sorted(index.search(queries[:1], 10).ids[0].tolist()) == [0, 1, 2]
    nothing = ExactIndex(np.zeros((0, 8), np.float32)).search(queries, 5)
    assert nothing.ids.shape == (300, 0)


def test_no_collective_of_the_banks_size():
    vectors, queries = _clustered(40_000, 16)
    index = ExactIndex(vectors, _mesh(2, 2, 2))
    lowered = index.program.lower(queries[: index.queries], index.vectors, k=8)
    text = lowered.compile().as_text()
    collectives = [line for line in text.splitlines() if re.search(r"= .*all-gather\(", line)]
    assert collectives
    assert not re.search(r"= .*(all-reduce|all-to-all|collective-permute)\(", text)
    for line in collectives:
        for shape in re.findall(r"(?:f32|s32)\[([\d,]+)\]", line.split("all-gather(")[0]):
            assert np.prod([int(size) for size in shape.split(",")]) <= index.queries * 8 * 8


def test_scann_recall():
    vectors, queries = _clustered(20_000)
    index = ScannIndex.build(vectors)
    found, expected = index.search(queries, 10), ExactIndex(vectors).search(queries, 10)
    hits = [len(set(a) & set(b)) for a, b in zip(found.ids, expected.ids, strict=True)]
    assert np.mean(hits) / 10 >= 0.95
    assert np.all(np.diff(found.scores) <= 0)
    again = index.search(queries, 10)
    np.testing.assert_array_equal(found.ids, again.ids)


def test_a_saved_scann_index_may_move(tmp_path):
    vectors, queries = _clustered(500)
    index = ScannIndex.build(vectors)
    index.save(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = ScannIndex.load(tmp_path / "there", vectors)
    np.testing.assert_array_equal(
        loaded.search(queries, 5).ids, ExactIndex(vectors).search(queries, 5).ids
    )
    with pytest.raises(UserError, match="other vectors"):
        ScannIndex.load(tmp_path / "there", -vectors)
    with pytest.raises(UserError, match="does not exist"):
        ScannIndex.load(tmp_path / "here", vectors)


def test_kinds(tmp_path):
    vectors, _ = _clustered(50)
    assert isinstance(build_index(vectors), ExactIndex)
    assert isinstance(build_index(vectors, "scann"), ScannIndex)
    bank = Bank.build(tmp_path / "bank", [], vectors[:0], "e", "v")
    assert isinstance(open_index(bank), ExactIndex)
    ScannIndex.build(vectors).save(bank.path / SAVED)
    assert isinstance(open_index(bank, "exact"), ExactIndex)
    with pytest.raises(UserError, match="other vectors"):
        open_index(bank)
