import dataclasses

import numpy as np
import pytest

from cm3jax import testing
from cm3jax.errors import UserError
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


def test_each_clause_gets_its_document_in_the_clauses_order(retriever):
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


def test_a_weighed_document_moves_and_others_stay(retriever):
    """Also one that the index alone would not have looked at."""
    config = dataclasses.replace(retriever.config, pool=3)
    narrow = Retriever(retriever.encoder, retriever.bank, config)
    order = best(retriever, TEXTS[0]).tolist()
    scores = retriever.bank.vectors @ retriever.encoder.encode_texts([TEXTS[0]])[0]
    for row, factor in ((order[0], 0.0), (order[-1], 9.0), (order[1], -1.0)):
        weighed = scores * np.where(np.arange(len(scores)) == row, factor, 1)
        (found,) = narrow.retrieve([(TEXTS[0], None)], 2, weights={row: factor})
        assert [document.id for document in found] == np.argsort(-weighed)[:2].tolist()
        np.testing.assert_allclose([d.score for d in found], np.sort(weighed)[:-3:-1], rtol=1e-5)


def test_rows_by_key(retriever):
    for row in range(3):
        assert retriever.row(retriever.bank.meta(row).key) == row
    with pytest.raises(UserError, match="has no document 'nobody'"):
        retriever.row("nobody")


def test_what_scores_below_the_floor_is_left_out_and_counted(retriever):
    scores = np.sort(retriever.bank.vectors @ retriever.encoder.encode_texts([TEXTS[0]])[0])[::-1]
    floor = float(scores[1:3].mean())  # two documents lie above it
    config = dataclasses.replace(retriever.config, relevance_floor=floor)
    strict = Retriever(retriever.encoder, retriever.bank, config)
    (found,) = strict.search([(TEXTS[0], None)], 4)
    np.testing.assert_allclose([d.score for d in found.documents], scores[:2], rtol=1e-5)
    np.testing.assert_allclose(found.left_out, scores[2:4], rtol=1e-5)
    (found,) = strict.search([(TEXTS[0], None)], 4, floor=-1.0)
    np.testing.assert_allclose([d.score for d in found.documents], scores[:4], rtol=1e-5)
    assert found.left_out == []


def test_a_document_left_out_by_hand_is_not_counted_as_below_the_floor(retriever):
    order = best(retriever, TEXTS[0]).tolist()
    (found,) = retriever.search([(TEXTS[0], None)], 1, exclude=[order[1:]], floor=2.0)
    assert (found.documents, len(found.left_out)) == ([], 1)


def test_weighing_takes_nothing_below_the_floor_but_may_lift_over_it(retriever):
    order = best(retriever, TEXTS[0]).tolist()
    scores = retriever.bank.vectors @ retriever.encoder.encode_texts([TEXTS[0]])[0]
    floor = float(scores[order[0]] + scores[order[1]]) / 2
    first, last = order[0], order[-1]
    (found,) = retriever.search([(TEXTS[0], None)], 2, weights={first: 0.5}, floor=floor)
    assert [document.id for document in found.documents] == [first]
    weights = {last: 2 * floor / float(scores[last])}
    (found,) = retriever.search([(TEXTS[0], None)], 2, weights=weights, floor=floor)
    assert [document.id for document in found.documents] == [last, first]
