"""Milvus Lite, the server's own engine in one file."""

import dataclasses
import json

import numpy as np
import pytest

from cm3jax import testing
from cm3jax.config import RetrievalConfig
from cm3jax.data.prepare import merge_banks, prepare_bank, remove_documents
from cm3jax.data.shard_jobs import SplitJob
from cm3jax.errors import UserError
from cm3jax.learners import clip
from cm3jax.report.html import cell, page
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument, mark_of
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.milvus import MilvusIndex
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.retriever import Retriever
from cm3jax.serve.studio import _without
from launch.tools import make_tools
from tests.data import preparation


def _unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.filterwarnings("ignore")  # of its own dependencies
def test_milvus_finds_what_exact_search_finds(tmp_path):
    rng = np.random.default_rng(0)
    vectors = _unit(rng.standard_normal((120, 16)))
    queries = _unit(rng.standard_normal((5, 16)))
    documents = [
        BankDocument(f"d{i}", np.array([i], np.int32), "", True, True, "s", "l") for i in range(120)
    ]
    bank = Bank.build(tmp_path / "bank", documents, vectors, "e", "v")
    address = str(tmp_path / "bank.db")
    expected = ExactIndex(vectors).search(queries, 10)
    for _ in range(2):  # made, and found again
        index = open_index(bank, "milvus", address)
        found = index.search(queries, 10)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        index.close()


@pytest.mark.filterwarnings("ignore")
def test_a_merge_and_a_removal_leave_no_vectors_on_the_server(tmp_path):
    address = str(tmp_path / "bank.db")
    config = RetrievalConfig(index="milvus", milvus=address)
    banks = [_bank(tmp_path / name, name, seed) for seed, name in enumerate("ab")]
    old = open_index(banks[0], "milvus", address)
    collection = old.collection
    old.close()
    merged = merge_banks(str(tmp_path / "a"), config, [str(tmp_path / "b")], (), lambda _: None)
    assert len(merged) == 6
    assert _collections(address) == []
    index = open_index(merged, "milvus", address)
    assert _collections(address) == [index.collection] != [collection]
    index.close()
    remove_documents(str(tmp_path / "a"), config, Removed(("a1",)), (), lambda _: None)
    assert _collections(address) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lost", ["some", "all"])
def test_what_a_server_has_lost_is_found_in_the_bank(tmp_path, lost):
    rng = np.random.default_rng(0)
    vectors, queries = (_unit(rng.standard_normal((n, 16))) for n in (30, 4))
    index = MilvusIndex(vectors, str(tmp_path / "bank.db"))
    if lost == "some":
        index._client.delete(index.collection, ids=list(range(0, 30, 2)))
    else:
        index._client.drop_collection(index.collection)
    found, expected = index.search(queries, 20), ExactIndex(vectors).search(queries, 20)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    index.close()


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_gone_is_named(tmp_path):
    address = str(tmp_path / "bank.db")
    index = MilvusIndex(np.eye(4, dtype=np.float32), address)
    index.close()
    with pytest.raises(UserError, match="does not answer as it should") as error:
        index.search(np.eye(4, dtype=np.float32), 2)
    assert address in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="does not answer as it should"):
        MilvusIndex(np.eye(4, dtype=np.float32), f"{tmp_path}/folder/none/x.db/y")


@pytest.mark.filterwarnings("ignore")
def test_a_server_keeps_no_vectors_that_were_sent_while_their_document_was_removed(tmp_path):
    """As who opened the bank before it was replaced sends them."""
    address = str(tmp_path / "bank.db")
    config = RetrievalConfig(index="milvus", milvus=address)
    bank = _bank(tmp_path / "a", "a", 0)
    shown = cell("a document", document=mark_of(bank.meta(1)))
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "report.html").write_text(page("A run", shown))
    sent = []

    def say(line):
        sent.append(line)
        open_index(bank, "milvus", address).close()

    remove_documents(str(tmp_path / "a"), config, Removed(("a1",)), [tmp_path / "pages"], say)
    assert sent
    assert _collections(address) == []


@pytest.mark.filterwarnings("ignore")
def test_a_document_that_is_taken_out_by_http_leaves_no_vector_on_the_server(tmp_path):
    address = str(tmp_path / "bank.db")
    testing.write_chain(tmp_path)
    config = RetrievalConfig(index="milvus", milvus=address)
    old = Retriever(clip.load(tmp_path / "clip"), Bank.open(tmp_path / "bank"), config)
    with pytest.raises(UserError, match="has no document 'tiny-99'"):
        _without(old, "tiny-99")
    assert _collections(address) == [old._index.collection]
    new = _without(old, "tiny-1")
    assert _collections(address) == [new._index.collection] != [old._index.collection]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_bank_that_is_prepared_again_leaves_no_old_vectors_on_the_server(tmp_path):
    address = str(tmp_path / "bank.db")
    preparation.write(tmp_path, 8)
    made = preparation.experiment(tmp_path, tmp_path / "out", 8)
    rules = dataclasses.replace(made.retrieval, index="milvus", milvus=address)
    made = dataclasses.replace(made, retrieval=rules)
    job, tools = SplitJob(made, "bank"), make_tools(made)
    for caption in ("a fox", "a dog"):
        lines = [{"file": f"{n}.png", "caption": f"{caption} {n}"} for n in range(8)]
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / "folder" / "captions.jsonl").write_text(text)
        bank = prepare_bank(job, tools, lambda _: None)
        assert bank.meta(0).text.startswith(caption)
        assert _collections(address) == []
        open_index(bank, "milvus", address).close()
        assert len(_collections(address)) == 1


def _bank(path, name, seed):
    vectors = _unit(np.random.default_rng(seed).standard_normal((3, 16)))
    documents = [
        BankDocument(f"{name}{i}", np.array([i], np.int32), "", True, True, "s", "l")
        for i in range(3)
    ]
    return Bank.build(path, documents, vectors, "e", "v")


def _collections(address):
    from pymilvus import MilvusClient

    client = MilvusClient(address)
    try:
        return client.list_collections()
    finally:
        client.close()


def test_a_missing_address_is_named():
    with pytest.raises(UserError, match=r"retrieval\.index=milvus needs retrieval\.milvus"):
        MilvusIndex(np.eye(2, dtype=np.float32), "")
