"""Milvus Lite, the server's own engine in one file."""

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.milvus import MilvusIndex


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


def test_a_missing_address_is_named():
    with pytest.raises(UserError, match=r"retrieval\.index=milvus needs retrieval\.milvus"):
        MilvusIndex(np.eye(2, dtype=np.float32), "")
