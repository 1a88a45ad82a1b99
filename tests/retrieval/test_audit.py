import math

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.retrieval import audit
from cm3jax.retrieval import bank as bank_module
from cm3jax.retrieval.audit_page import AuditQuery, audit_page
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.interface import Neighbours
from cm3jax.retrieval.select import NONE
from cm3jax.testing import image_tokenizer
from tests import tiny


def _unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def bank(tmp_path):
    vectors = _unit(np.random.default_rng(0).standard_normal((40, 8)))
    documents = [
        BankDocument(f"d{i}", np.zeros(1, np.int32), "", i != 0, i != 1, "s", "l", (f"n{i // 4}",))
        for i in range(40)
    ]
    return Bank.build(tmp_path / "bank", documents, vectors, "e", "v")


class _Backwards:
    """An index that gives the exact one's answer to the opposite question."""

    def __init__(self, vectors):
        self._exact = ExactIndex(vectors)

    def search(self, queries, k) -> Neighbours:
        return self._exact.search(-queries, k)


def test_self_retrieval(bank):
    assert audit.self_retrieval(bank, ExactIndex(bank.vectors)) == 1
    assert audit.self_retrieval(bank, _Backwards(bank.vectors)) == 0


def test_a_shard_that_no_one_finds_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bank_module, "_SHARD", 20)
    vectors = _unit(np.random.default_rng(0).standard_normal((40, 8)))
    documents = [
        BankDocument(f"d{i}", np.zeros(1, np.int32), "", True, True, "s", "l") for i in range(40)
    ]
    bank = Bank.build(tmp_path / "bank", documents, vectors, "e", "v")
    assert audit.dead_shards(bank, ExactIndex(bank.vectors)) == []
    assert audit.dead_shards(bank, ExactIndex(bank.vectors[:20])) == [
        "documents-00001.array_record"
    ]


def test_latencies_are_of_single_queries(bank):
    index = ExactIndex(bank.vectors)
    taken = audit.latencies(index, np.asarray(bank.vectors), 5, sample=7)
    assert taken.shape == (7,)
    assert (taken > 0).all()


def test_recall(bank):
    exact, queries = ExactIndex(bank.vectors), np.asarray(bank.vectors[:5])
    assert audit.recall(exact, exact, queries, 10) == 1
    assert audit.recall(_Backwards(bank.vectors), exact, queries, 10) < 0.2


def test_all_subjects_must_be_shown(bank):
    ids = np.array([[4, 8], [4, 8], [4, NONE], [1, NONE], [5, 6]])
    wanted = [("n1",), ("n1", "n2"), ("n1", "n2"), ("n0",), ()]
    # Document 1 is about n0 but has no image; the last query wants nothing.
    assert audit.subject_hits(ids, bank, wanted) == 0.5
    assert math.isnan(audit.subject_hits(ids[:1], bank, [()]))


def test_cuts_lie_where_subjects_part():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    subjects = [(f"n{i % 50}",) for i in range(200)]
    centres = centres[np.arange(200) % 50]
    documents = _unit(centres + 0.3 * rng.standard_normal((200, 32)))
    text, image = (_unit(documents + 0.1 * rng.standard_normal((200, 32))) for _ in range(2))
    fitted = audit.calibrate(text, image, documents, subjects)
    own = np.concatenate([(text * documents).sum(1), (image * documents).sum(1)])
    assert np.mean(own > fitted.relevance_cut) == pytest.approx(0.05, abs=0.01)
    scores = documents @ documents.T
    same = np.equal.outer(np.arange(200) % 50, np.arange(200) % 50)
    assert np.mean(scores[same] > fitted.diversity_cut) > 0.95
    assert np.mean(scores[~same] > fitted.diversity_cut) < 0.01


def test_without_subjects_only_relevance_is_fitted():
    vectors = _unit(np.random.default_rng(0).standard_normal((10, 8)))
    fitted = audit.calibrate(vectors, vectors, vectors, [()] * 10)
    assert fitted.relevance_cut == pytest.approx(1)
    assert math.isnan(fitted.diversity_cut)


def test_a_bank_of_another_vocabulary_is_one_sentence(tmp_path):
    ids = np.array([tiny.VOCAB.first_image], np.int32)  # no whole image
    document = BankDocument("a", ids, "", False, True, "s", "l")
    bank = Bank.build(tmp_path / "bank", [document], np.ones((1, 1), np.float32), "e", "v")
    found = Neighbours(np.zeros((1, 1), np.int64), np.ones((1, 1), np.float32))
    asked = AuditQuery("a fox", np.zeros((4, 4, 3), np.uint8), {"text": found})
    with pytest.raises(UserError, match="was made with another vocabulary than this experiment's"):
        audit_page(bank, [], [asked], tiny.VOCAB.config, image_tokenizer())
