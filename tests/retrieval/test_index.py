import dataclasses
import json
import os
import re
import resource

import jax
import numpy as np
import pytest
from etils import epath

from cm3jax.config import RetrievalConfig
from cm3jax.errors import UserError
from cm3jax.io.paths import files_below
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import SAVED, BankDocument
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.index import ShardedIndex, keep_index, open_index
from cm3jax.retrieval.interface import Neighbours, found_of
from cm3jax.retrieval.scann import ScannIndex, index_files
from launch.env import user_sentence


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


@pytest.fixture(scope="module")
def gap():
    """Vectors of 20,000 documents, and queries of two kinds around different means."""
    vectors, queries = _clustered(20_000)
    shift = np.random.default_rng(1).standard_normal((2, 1, 64)) / 8
    asked = {kind: _unit(queries + by) for kind, by in zip(("text", "image"), shift, strict=True)}
    tuning = {kind: part[:150] for kind, part in asked.items()}
    return vectors, ScannIndex.build(vectors, tuning, 0.95), asked


def test_scann_finds_what_was_asked_for_by_every_kind_of_query(gap):
    """With other queries than those that chose how much of the index is searched."""
    vectors, index, asked = gap
    assert index.effort.leaves < 100
    for kind, queries in asked.items():
        others = queries[150:]
        found, expected = index.search(others, 10), ExactIndex(vectors).search(others, 10)
        assert found_of(found, expected).mean() >= 0.95
        assert index.effort.recall[kind] >= 0.95
        assert np.all(np.diff(found.scores) <= 0)


def test_scann_spends_no_more_than_the_recall_needs(gap):
    vectors, index, asked = gap
    best = {kind: ExactIndex(vectors).search(q, 10) for kind, q in asked.items()}
    efforts = [index._choose(asked, best, wanted) for wanted in (0.5, 0.8, 0.95)]
    work = [index._bytes_read((effort.leaves, effort.candidates)) for effort in efforts]
    assert work == sorted(work)
    assert work[0] < work[2]
    assert min(efforts[2].recall.values()) >= 0.95


def test_scann_answers_a_query_alike_in_every_batch(gap):
    _, index, asked = gap
    queries = asked["text"]
    together = index.search(queries, 10)
    for batch in (1, 7, 100):
        parts = [index.search(queries[i : i + batch], 10) for i in range(0, 300, batch)]
        np.testing.assert_array_equal(np.concatenate([p.ids for p in parts]), together.ids)
        np.testing.assert_array_equal(np.concatenate([p.scores for p in parts]), together.scores)


def test_scann_finds_as_many_documents_as_are_asked_for(gap):
    _, index, asked = gap
    found = index.search(asked["text"][:5], 2000)
    assert np.isfinite(found.scores).all()
    assert all(len(set(row)) == 2000 for row in found.ids.tolist())


def test_scann_is_built_alike_every_time(gap):
    vectors, _, asked = gap
    one, other = (ScannIndex.build(vectors[:10_000], asked, 0.9) for _ in range(2))
    assert one.effort == other.effort
    found = [index.search(asked["text"], 10) for index in (one, other)]
    np.testing.assert_array_equal(found[0].ids, found[1].ids)


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


def test_an_index_stays_until_another_replaces_it(tmp_path, monkeypatch):
    vectors, queries = _clustered(500)
    path = tmp_path / "scann" / "00000"
    ScannIndex.build(vectors, recall=0.9).save(path)
    best = ExactIndex(vectors).search(queries, 5).ids

    def killed(*_):
        raise KeyboardInterrupt

    for moment in ("write_json", "swap"):
        with monkeypatch.context() as patch:
            patch.setattr(f"cm3jax.retrieval.scann.{moment}", killed)
            with pytest.raises(KeyboardInterrupt):
                ScannIndex.build(vectors, recall=0.8).save(path)
        index = ScannIndex.load(path, vectors)
        assert index.effort.wanted == 0.9
        np.testing.assert_array_equal(index.search(queries, 5).ids, best)
        left = set(index_files(epath.Path(path.parent)))
        assert any(name.startswith(".00000.part/") for name in left) == (moment == "swap")
        assert left == files_below(epath.Path(path.parent))  # all of it goes where the bank goes
    ScannIndex.build(vectors, recall=0.8).save(path)
    assert ScannIndex.load(path, vectors).effort.wanted == 0.8
    assert [one.name for one in path.parent.iterdir()] == ["00000"]


@pytest.mark.parametrize("room", [0, 100, 20_000])
def test_on_a_full_disk_the_old_index_stays(tmp_path, room):
    """ScaNN's own files or ours are the first that find no room."""
    vectors, _ = _clustered(300)
    path = tmp_path / "00000"
    ScannIndex.build(vectors, recall=0.9).save(path)
    other, before = ScannIndex.build(vectors, recall=0.8), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises((UserError, OSError)) as raised:
            other.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "00000" in user_sentence(raised.value)
    assert ScannIndex.load(path, vectors).effort.wanted == 0.9
    assert os.listdir(tmp_path) == ["00000"]


def test_an_index_in_parts_finds_what_one_of_all_finds(tmp_path, monkeypatch):
    vectors, queries = _clustered(1000, 16)
    vectors[700:800] = vectors[:100]  # copies, in another part
    vectors[990:] = vectors[0]
    nothing = BankDocument("", np.zeros(1, np.int32), "", True, True, "s", "l")
    documents = [dataclasses.replace(nothing, key=str(i)) for i in range(1000)]
    bank = Bank.build(tmp_path / "bank", documents, vectors, "e", "v")
    monkeypatch.setattr("cm3jax.retrieval.index.SHARD", 300)
    keep_index(bank, RetrievalConfig(index="scann"))
    assert sorted(path.name for path in (bank.path / SAVED).iterdir()) == [
        f"{part:05d}" for part in range(4)
    ]
    index = open_index(bank)
    assert isinstance(index, ShardedIndex)
    for k in (1, 10, 400, 2000):
        found, expected = index.search(queries, k), ExactIndex(vectors).search(queries, k)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        best = np.take_along_axis(queries @ vectors.T, found.ids, 1)
        np.testing.assert_allclose(best, expected.scores, atol=1e-6)
        assert all(len(set(row)) == len(row) for row in found.ids.tolist())
        # Equal scores come in the order of their ids.
        tied = np.diff(found.scores, axis=1) == 0
        assert (np.diff(found.ids, axis=1)[tied] > 0).all()


def test_kinds(tmp_path):
    vectors, _ = _clustered(50)
    bank = Bank.build(tmp_path / "bank", [], vectors[:0], "e", "v")
    assert isinstance(open_index(bank), ExactIndex)
    assert isinstance(open_index(bank, "scann"), ScannIndex)
    ScannIndex.build(vectors).save(bank.path / SAVED / "00000")
    assert isinstance(open_index(bank, "exact"), ExactIndex)
    with pytest.raises(UserError, match="other vectors"):
        open_index(bank)


def test_an_index_whose_first_save_was_killed_is_none(tmp_path):
    bank = Bank.build(tmp_path / "bank", [], np.zeros((0, 8), np.float32), "e", "v")
    (bank.path / SAVED / ".00000.part").mkdir(parents=True)
    assert isinstance(open_index(bank), ExactIndex)


def _changed(**fields):
    return lambda about: {**about, **fields}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: [], r"index\.json is damaged or of an earlier version \(its 'vectors'\)"),
        (lambda _: {}, r"index\.json is damaged or of an earlier version \(its 'vectors'\)"),
        (_changed(vectors=3), r"its 'vectors'"),
        (_changed(documents="many"), r"its 'documents'"),
        (_changed(documents=7), "was built for other vectors"),
        (_changed(vectors="0" * 16), "was built for other vectors"),
        (_changed(effort=None), r"its 'effort'"),
        (_changed(effort={"leaves": 3}), r"index\.json has no field effort\.wanted"),
        (_changed(effort={"wanted": "high"}), r"effort\.wanted is 'high', which is not float"),
        (_changed(effort={"wanted": 0.9, "pages": 1}), r"has a field effort\.pages that this"),
        (_changed(effort={"wanted": 0.9, "recall": {"text": "x"}}), r"effort\.recall\.text is 'x'"),
        (_changed(bytes={"dataset.npy": 7}), r"dataset\.npy has \d+ of 7 bytes"),
        (_changed(bytes=[]), r"its 'bytes'"),
    ],
)
def test_a_damaged_index_raises_user_error_and_is_built_again(tmp_path, damage, said):
    vectors, queries = _clustered(50, 16)
    nothing = BankDocument("", np.zeros(1, np.int32), "", True, True, "s", "l")
    documents = [dataclasses.replace(nothing, key=str(i)) for i in range(50)]
    bank = Bank.build(tmp_path / "bank", documents, vectors, "e", "v")
    config = RetrievalConfig(index="scann", recall=0.9)
    keep_index(bank, config)
    about = bank.path / SAVED / "00000" / "index.json"
    whole = json.loads(about.read_text())
    about.write_text(json.dumps(damage(whole)))
    with pytest.raises(UserError, match=said):
        open_index(bank, "scann")
    keep_index(bank, config)
    assert json.loads(about.read_text()) == whole
    np.testing.assert_array_equal(
        open_index(bank, "scann").search(queries, 5).ids, _literal(vectors, queries, 5).ids
    )
    whole.pop("bytes")  # as earlier versions wrote it
    about.write_text(json.dumps(whole))
    keep_index(bank, config)
    assert json.loads(about.read_text()) == whole, "what is sound stays"


@pytest.mark.parametrize("damage", ["cut", "missing", "config"])
def test_damaged_files_of_an_index_raise_user_error(tmp_path, damage):
    vectors, _ = _clustered(50, 16)
    ScannIndex.build(vectors).save(tmp_path / "index")
    data, config = (tmp_path / "index" / name for name in ("dataset.npy", "scann_config.pb"))
    if damage == "cut":
        os.truncate(data, data.stat().st_size // 2)
    elif damage == "missing":
        data.unlink()
    else:
        config.write_bytes(b"\xff" * config.stat().st_size)
    said = r"the ScaNN index .*; build it with python -m launch\.index build EXPERIMENT"
    with pytest.raises(UserError, match=said):
        ScannIndex.load(tmp_path / "index", vectors)


def test_copies_count_as_found():
    scores = np.array([[0.9, 0.8, 0.8]], np.float32)
    best = Neighbours(np.array([[4, 1, 2]]), scores)
    assert found_of(Neighbours(np.array([[4, 7, 9]]), scores), best) == 1
    fewer = Neighbours(np.array([[4, 7]]), scores[:, :2])
    assert found_of(fewer, best) == pytest.approx(2 / 3)
    assert found_of(Neighbours(np.array([[4, 5, 6]]), scores - [[0, 0.1, 0.1]]), best) == 1 / 3
