"""Milvus Lite, the server's own engine in one file."""

import numpy as np
import pytest

from cm3jax.config import RetrievalConfig
from cm3jax.data.prepare import merge_banks, remove_documents
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.milvus import MilvusIndex
from cm3jax.retrieval.removed import Removed


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
