"""What was taken out of a bank is found by no index of any kind, whatever happens to the bank."""

import shutil

import numpy as np
import pytest

from cm3jax.config import RetrievalConfig
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import SAVED, BankDocument
from cm3jax.retrieval.index import keep_index, open_index
from cm3jax.retrieval.milvus import MilvusIndex, forget
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import merge, remove

SIZE, WIDTH = 12_000, 32
"""More than ScaNN answers by brute force."""


@pytest.fixture
def bank(tmp_path):
    centres = np.random.default_rng(0).standard_normal((100, WIDTH))
    vectors = centres[np.arange(SIZE) % 100]
    vectors = vectors + 0.3 * np.random.default_rng(1).standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    documents = [
        BankDocument(f"d{i}", np.array([i], np.int32), "", True, True, "s", "l")
        for i in range(SIZE)
    ]
    return Bank.build(tmp_path / "bank", documents, vectors, "e", "v")


def open_as(bank, kind, address):
    """The bank opened again with an index that was saved, or left on a server."""
    config = RetrievalConfig(index=kind)
    if kind == "scann":
        keep_index(bank, config)
        assert (bank.path / SAVED).exists()
    reopened = Bank.open(bank.path)
    if kind == "milvus":
        open_index(reopened, kind, address).close()
    return reopened, open_index(reopened, kind, address)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Milvus's dependencies
@pytest.mark.parametrize("kind", ["exact", "scann", "milvus"])
def test_one_in_a_hundred_documents_is_removed_for_good(bank, tmp_path, kind):
    address = str(tmp_path / "server.db")
    rows = np.random.default_rng(2).choice(SIZE, SIZE // 100, replace=False)
    gone, vectors = {f"d{row}" for row in rows}, np.array(bank.vectors)
    copy = Bank.open(shutil.copytree(bank.path, tmp_path / "copy"))

    def found(bank):
        opened, index = open_as(bank, kind, address)
        ids = np.concatenate([index.search(vectors[rows[i : i + 40]], 10).ids for i in (0, 40, 80)])
        return [{opened.meta(int(id)).key for id in best} for best in ids]

    first = found(bank)
    assert sum(f"d{row}" in keys for row, keys in zip(rows, first, strict=True)) >= 119
    removed = Removed(keys=tuple(sorted(gone)))
    smaller = remove(bank, removed)
    if kind == "milvus":
        forget(vectors, address)
    assert len(smaller) == SIZE - len(gone)
    assert not set.union(*found(smaller)) & gone
    again = merge(bank.path, [smaller, copy])
    assert len(again) == SIZE - len(gone)
    assert not set.union(*found(again)) & gone


@pytest.mark.filterwarnings("ignore")
def test_a_server_forgets_the_vectors_of_a_bank(tmp_path):
    vectors, address = np.eye(8, dtype=np.float32), str(tmp_path / "server.db")
    index = MilvusIndex(vectors, address)
    forget(vectors, address)
    assert not index._client.has_collection(index.collection)
    forget(vectors, address)  # nothing to forget
