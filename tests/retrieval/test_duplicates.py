import numpy as np

from cm3jax.config import RetrievalConfig
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import DUPLICATES, BankDocument
from cm3jax.retrieval.duplicates import save_duplicates


def test_copies_and_near_copies_are_marked(tmp_path):
    vectors = np.eye(6, dtype=np.float32)
    vectors[3] = vectors[1]  # near, with other ids
    vectors[4] = vectors[1] * 0.8 + vectors[4] * 0.6  # not near enough
    ids = [np.array([i], np.int32) for i in (1, 2, 3, 4, 5, 3)]  # the last one copies the third
    documents = [
        BankDocument(f"d{i}", ids[i], "", True, True, "s", "l") for i in range(len(vectors))
    ]
    bank = Bank.build(tmp_path / "bank", documents, vectors, "e", "v")
    found = save_duplicates(bank, RetrievalConfig(duplicate_cut=0.9))
    assert found.first.tolist() == [0, 1, 2, 1, 4, 2]
    assert (found.exact, found.near) == (1, 1)
    np.testing.assert_array_equal(np.load(bank.path / DUPLICATES), found.first)
