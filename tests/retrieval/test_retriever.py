import dataclasses

import numpy as np
import pytest

from cm3jax import testing
from cm3jax.learners import clip
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.retriever import Retriever

TEXTS = ("a red fox", "seven blue boats on a lake")


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    """Every document counts alike, so that scores alone decide."""
    path = tmp_path_factory.mktemp("chain")
    run = testing.write_chain(path)
    config = dataclasses.replace(
        testing.experiment().retrieval, diversity_cut=2.0, modality_margin=0.0, pool=12
    )
    return Retriever(clip.load(run.parent / "clip"), Bank.open(path / "bank"), config)


def asking_by_clause(retriever):
    config = dataclasses.replace(retriever.config, clauses=True)
    return Retriever(retriever.encoder, retriever.bank, config)


def best(retriever, text):
    scores = retriever.bank.vectors @ retriever.encoder.encode_texts([text])[0]
    return np.argsort(-scores)


def test_each_clause_gets_its_document_and_they_stand_in_the_clauses_order(retriever):
    asker = asking_by_clause(retriever)
    orders = (TEXTS, TEXTS[::-1])
    found = asker.retrieve([(f"{first} and {second}", None) for first, second in orders], 2)
    forth, back = ([document.id for document in documents] for documents in found)
    assert forth == back[::-1]
    lists = [best(retriever, text).tolist() for text in TEXTS]
    tops = {row[0] for row in lists}
    assert tops & set(forth)
    assert set(forth) <= {row for found in lists for row in found[:2]}
    assert len(tops) == 1 or forth == [row[0] for row in lists]


def test_a_text_of_one_clause_and_a_picture_ask_as_they_are(retriever):
    picture = testing.pictures(1)[0]
    for query in ((TEXTS[0], None), (None, picture), ("a fox and a hen", picture)):
        whole = retriever.retrieve([query], 3)
        assert [[d.id for d in found] for found in whole] == [
            [d.id for d in found] for found in asking_by_clause(retriever).retrieve([query], 3)
        ]
