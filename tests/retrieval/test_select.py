import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3jax.config import RetrievalConfig
from cm3jax.retrieval.interface import Neighbours
from cm3jax.retrieval.select import (
    NONE,
    Drawn,
    draw_documents,
    drop_pieces,
    excluded,
    near,
    preference,
    select_documents,
    shuffled,
    side_by_side,
    too_relevant,
    with_wrong,
)

CONFIG = RetrievalConfig(
    candidates=2, relevance_cut=0.9, diversity_cut=0.8, modality_margin=0.1, pool=8
)


def _unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _neighbours(ids, scores):
    return Neighbours(np.array([ids], np.int64), np.array([scores], np.float32))


def _far_apart(count):
    return np.eye(count, dtype=np.float32)


def test_rules():
    ids = np.array([[3, 4, 5]])
    assert excluded(ids, np.array([[4, NONE]])).tolist() == [[False, True, False]]
    scores = np.array([[0.95, 0.9, 0.5]], np.float32)
    assert too_relevant(scores, 0.92).tolist() == [[True, False, False]]
    pair = np.array([[False, True, False]])
    np.testing.assert_allclose(preference(scores, pair, 0.1), [[0.85, 0.9, 0.4]], atol=1e-6)
    pool = np.array([[[1, 0], [0, 1], [0.6, 0.8]]], np.float32)
    assert near(pool[:, 1], pool, 0.7).tolist() == [[False, True, True]]


def test_lists_of_one_record_are_side_by_side():
    found = Neighbours(
        np.array([[0, 1], [2, 3], [4, 5]]), np.array([[0.5, 0.4], [0.9, 0.1], [0.8, 0.7]], "f4")
    )
    lists = side_by_side(found, [2, 0, 1])
    assert lists.ids.tolist() == [[0, 1, 2, 3], [NONE] * 4, [4, 5, NONE, NONE]]
    assert lists.scores[2].tolist() == [*found.scores[2].tolist(), -np.inf, -np.inf]


@pytest.mark.parametrize(("margin", "expected"), [(0.5, [0, 3]), (0.48, [0, 1])])
def test_a_list_that_gave_one_must_win_by_a_margin_and_nothing_repeats(margin, expected):
    lists = _neighbours([0, 1, 2, 0, 3, NONE], [0.7, 0.69, 0.68, 0.6, 0.2, -np.inf])
    config = dataclasses.replace(CONFIG, clause_margin=margin)
    found = select_documents(lists, _far_apart(4), np.ones(4, bool), config, queries=2)
    assert found.ids.tolist() == [expected]
    assert (found.counts["seen"], found.counts["excluded"]) == (5, 0)
    assert select_documents(lists, _far_apart(4), np.ones(4, bool), CONFIG).ids.tolist() == [[0, 1]]


def test_the_first_lists_document_comes_first_whatever_its_score():
    lists = _neighbours([0, 1, 2, 3], [0.6, 0.5, 0.9, 0.8])
    found = select_documents(lists, _far_apart(4), np.ones(4, bool), CONFIG, queries=2)
    assert found.ids.tolist() == [[0, 2]]
    np.testing.assert_allclose(found.scores, [[0.6, 0.9]])
    one = dataclasses.replace(CONFIG, candidates=1)
    found = select_documents(lists, _far_apart(4), np.ones(4, bool), one, queries=2)
    assert found.ids.tolist() == [[2]]
    alone = _neighbours([NONE, NONE, 2, 3], [-np.inf, -np.inf, 0.9, 0.8])
    three = dataclasses.replace(CONFIG, candidates=3)
    found = select_documents(alone, _far_apart(4), np.ones(4, bool), three, queries=2)
    assert found.ids.tolist() == [[2, 3, NONE]]


def test_the_best_that_pass():
    found = select_documents(
        _neighbours([0, 1, 2, 3, 4], [0.99, 0.85, 0.8, 0.7, 0.6]),
        _far_apart(5),
        np.ones(5, bool),
        CONFIG,
        exclude=np.array([[1]]),
    )
    assert found.ids.tolist() == [[2, 3]]
    np.testing.assert_allclose(found.scores, [[0.8, 0.7]])
    assert found.counts == {
        "seen": 5,
        "excluded": 1,
        "too_relevant": 1,
        "irrelevant": 0,
        "not_diverse": 0,
        "preferred": 0,
        "missing": 0,
    }


def test_generation_cuts_nothing():
    neighbours = _neighbours([0, 1, 2], [0.99, 0.85, 0.8])
    found = select_documents(neighbours, _far_apart(3), np.ones(3, bool), CONFIG, cuts=False)
    assert found.ids.tolist() == [[0, 1]]


def test_what_has_nothing_to_do_with_the_query_is_not_shown():
    neighbours = _neighbours([0, 1, 2], [0.85, 0.5, 0.3])
    config = dataclasses.replace(CONFIG, relevance_floor=0.5)
    found = select_documents(neighbours, _far_apart(3), np.ones(3, bool), config)
    assert found.ids.tolist() == [[0, 1]]
    higher = dataclasses.replace(CONFIG, relevance_floor=0.6)
    found = select_documents(neighbours, _far_apart(3), np.ones(3, bool), higher)
    assert found.ids.tolist() == [[0, NONE]]
    assert found.counts["irrelevant"] == 2
    found = select_documents(neighbours, _far_apart(3), np.ones(3, bool), higher, cuts=False)
    assert found.ids.tolist() == [[0, 1]]


def test_chosen_documents_differ():
    vectors = _unit(np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1]]))
    found = select_documents(
        _neighbours([0, 1, 2, 3], [0.8, 0.7, 0.6, 0.5]), vectors, np.ones(4, bool), CONFIG
    )
    assert found.ids.tolist() == [[0, 2]]
    assert found.counts["not_diverse"] == 2


def test_pairs_before_single_modalities_of_about_the_same_score():
    pair = np.array([False, True, False])
    neighbours = _neighbours([0, 1, 2], [0.8, 0.75, 0.4])
    found = select_documents(neighbours, _far_apart(3), pair, CONFIG)
    assert found.ids.tolist() == [[1, 0]]
    assert found.counts["preferred"] == 1
    neighbours = _neighbours([0, 1, 2], [0.8, 0.65, 0.4])
    found = select_documents(neighbours, _far_apart(3), pair, CONFIG)
    assert found.ids.tolist() == [[0, 1]]
    assert found.counts["preferred"] == 0


def test_too_few_are_counted():
    found = select_documents(
        _neighbours([0, 1], [0.95, 0.5]), _far_apart(2), np.ones(2, bool), CONFIG
    )
    assert found.ids.tolist() == [[1, NONE]]
    assert found.scores[0, 1] == 0
    assert found.counts["missing"] == 1
    empty = Neighbours(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32))
    assert (
        select_documents(empty, _far_apart(2), np.ones(2, bool), CONFIG).ids.tolist()
        == [[NONE] * 2] * 2
    )


def _literal_choice(ids, scores, vectors, pair, exclude, config):
    """One query after another, one neighbour after another, as the rules read."""
    left = [
        (score - (0 if pair[i] else np.float32(config.modality_margin)), -place, i, score)
        for place, (i, score) in enumerate(zip(ids, scores, strict=True))
        if i not in exclude and config.relevance_floor <= score <= config.relevance_cut
    ]
    chosen = []
    while left and len(chosen) < config.candidates:
        best = max(left)
        chosen.append(best[2])
        left = [x for x in left if x is not best]
        left = [x for x in left if not vectors[x[2]] @ vectors[best[2]] > config.diversity_cut]
    return chosen + [NONE] * (config.candidates - len(chosen))


def test_choice_is_the_literal_rule():
    rng = np.random.default_rng(0)
    vectors = _unit(rng.standard_normal((50, 4)))
    queries = _unit(rng.standard_normal((40, 4)))
    pair = rng.random(50) < 0.7
    all_scores = queries @ vectors.T
    ids = np.argsort(-all_scores)[:, :12]
    scores = np.take_along_axis(all_scores, ids, axis=1)
    exclude = rng.integers(0, 50, (40, 5))
    found = select_documents(Neighbours(ids, scores), vectors, pair, CONFIG, exclude)
    for row in range(40):
        expected = _literal_choice(ids[row], scores[row], vectors, pair, exclude[row], CONFIG)
        assert found.ids[row].tolist() == expected


def _views(pieces, record, view, share=0.2):
    return drop_pieces([pieces], np.array([record]), view, share, seed=0)[0]


def test_the_first_view_is_clean():
    pieces = list(range(1000))
    assert _views(pieces, 3, 0) == pieces
    views = [_views(pieces, 3, view) for view in (1, 2, 2)]
    assert views[0] != views[1] == views[2]
    assert 750 < len(views[0]) < 850
    assert views[0] == sorted(views[0])


def test_views_depend_only_on_their_record():
    texts = [list(range(5)), list(range(40)), []]
    together = drop_pieces(texts, np.array([7, 8, 9]), np.array([1, 0, 2]), 0.5, seed=0)
    assert together[0] == _views(texts[0], 7, 1, 0.5)
    assert together[1] == texts[1]
    assert together[2] == []


def test_a_view_is_never_empty():
    for record in range(20):
        assert _views([7, 8], record, 1, share=0.9)


def _table(rng, batch, views, candidates):
    ids = rng.integers(0, 6, (batch, views, 2, candidates))
    ids[rng.random(ids.shape) < 0.2] = NONE
    return ids, np.where(ids == NONE, 0, rng.random(ids.shape)).astype(np.float32)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_a_draw_takes_distinct_candidates_of_one_view(seed, views, candidates, documents):
    ids, scores = _table(np.random.default_rng(seed), 8, views, candidates)
    drawn = draw_documents(np, ids, scores, seed, 1, np.arange(8), documents)
    assert drawn.ids.shape == (8, min(documents, 2 * candidates))
    for row in range(8):
        real = [i for i in drawn.ids[row].tolist() if i != NONE]
        assert drawn.ids[row].tolist()[len(real) :] == [NONE] * (drawn.ids.shape[1] - len(real))
        assert len(set(real)) == len(real)
        of_views = [set(ids[row, view].ravel().tolist()) - {NONE} for view in range(views)]
        assert any(
            set(real) <= of_view and len(real) == min(drawn.ids.shape[1], len(of_view))
            for of_view in of_views
        )


def test_numpy_and_jax_draw_the_same():
    ids, scores = _table(np.random.default_rng(0), 500, 4, 2)
    records = np.arange(500) * 7
    host = draw_documents(np, ids, scores, 5, 2, records, 3)
    device = draw_documents(
        jnp, jnp.asarray(ids), jnp.asarray(scores), 5, 2, jnp.asarray(records), 3
    )
    np.testing.assert_array_equal(host.ids, device.ids)
    np.testing.assert_array_equal(host.scores, device.scores)


def test_records_are_drawn_alone():
    ids, scores = _table(np.random.default_rng(0), 50, 4, 2)
    whole = draw_documents(np, ids, scores, 5, 2, np.arange(50), 2)
    one = draw_documents(np, ids[31:32], scores[31:32], 5, 2, np.array([31]), 2)
    np.testing.assert_array_equal(one.ids[0], whole.ids[31])


def test_three_of_four_are_uniform_and_two_come_from_one_query():
    ids = np.tile(np.arange(4).reshape(1, 1, 2, 2), (4000, 1, 1, 1))
    scores = ids.astype(np.float32)
    three = draw_documents(np, ids, scores, 0, 0, np.arange(4000), 3).ids
    left_out = 6 - three.sum(1)
    assert np.all(np.abs(np.bincount(left_out, minlength=4) - 1000) < 150)
    assert np.all(np.diff(three) > 0)
    two = draw_documents(np, ids, scores, 0, 0, np.arange(4000), 2).ids
    kinds, counts = np.unique(two, axis=0, return_counts=True)
    assert kinds.tolist() == [[0, 1], [2, 3]]
    assert np.all(np.abs(counts - 2000) < 200)


WRONG = [
    # shown, other, chosen -> shown
    ([4, 5], 9, True, [4, 9]),  # in the last place
    ([4, NONE], 9, True, [4, 9]),  # in the free one
    ([NONE, NONE], 9, True, [9, NONE]),
    ([4, 5], 9, False, [4, 5]),
    ([4, 5], NONE, True, [4, 5]),
    ([4, 5], 4, True, [4, 5]),  # is shown already
]


@pytest.mark.parametrize("xp", [np, jnp])
def test_a_wrong_document_takes_the_last_place_and_is_the_first_to_go(xp):
    ids, others, chosen, expected = (xp.asarray(column) for column in zip(*WRONG, strict=True))
    scores = xp.where(ids == NONE, 0.0, 0.5).astype(xp.float32)
    drawn = with_wrong(xp, Drawn(ids, scores), others, chosen)
    np.testing.assert_array_equal(drawn.ids, expected)
    new = np.asarray(drawn.ids) != np.asarray(ids)
    assert (np.asarray(drawn.scores)[new] == -1).all()
    np.testing.assert_array_equal(np.asarray(drawn.scores)[~new], np.asarray(scores)[~new])


def test_shuffled_documents_keep_their_scores_and_come_first_as_often_as_last():
    ids = np.tile([[3, 4, NONE]], (4000, 1))
    scores = np.tile(np.float32([[0.3, 0.4, 0.0]]), (4000, 1))
    records = np.arange(4000)
    mixed = shuffled(np, Drawn(ids, scores), 1, 2, records)
    assert (mixed.ids[:, 2] == NONE).all()
    np.testing.assert_allclose(mixed.scores[:, :2], mixed.ids[:, :2] / 10, rtol=1e-6)
    assert np.mean(mixed.ids[:, 0] == 3) == pytest.approx(0.5, abs=0.03)
    device = shuffled(jnp, Drawn(jnp.asarray(ids), jnp.asarray(scores)), 1, 2, records)
    np.testing.assert_array_equal(mixed.ids, device.ids)
    again = shuffled(np, Drawn(ids[:9], scores[:9]), 1, 3, records[:9])
    assert (again.ids[:9] != mixed.ids[:9]).any()  # another epoch, another order


def test_choosing_is_fast():
    rng = np.random.default_rng(0)
    vectors = _unit(rng.standard_normal((5000, 128)))
    ids = rng.integers(0, 5000, (20_000, 32))
    scores = rng.random((20_000, 32)).astype(np.float32)
    start = time.perf_counter()
    select_documents(Neighbours(ids, scores), vectors, np.ones(5000, bool), CONFIG)
    # 50,000 records x 4 text views and 1 image are 250,000 queries.
    assert (time.perf_counter() - start) * 250_000 / 20_000 < 60
