import itertools

import pytest

from cm3jax.evaluate import chance


def test_another_answer_is_right_as_often_as_answers_repeat():
    answers = ["a", "a", "a", "b", "b", "c"]
    pairs = list(itertools.permutations(answers, 2))
    expected = sum(left == right for left, right in pairs) / len(pairs)
    assert chance.of_another_answer(answers) == pytest.approx(expected)
    assert chance.of_another_answer(["alone"]) == 0.0


def test_a_hit_by_counting_every_draw():
    documents, relevant, k = 7, {1, 4}, 2
    draws = list(itertools.combinations(range(documents), k))
    expected = sum(bool(relevant & set(draw)) for draw in draws) / len(draws)
    assert chance.of_a_hit(len(relevant), documents, k) == pytest.approx(expected)
    assert chance.of_a_hit(0, documents, k) == 0.0
    assert [chance.of_a_hit(right, 1, 2) for right in (0, 1)] == [0.0, 1.0]  # all are drawn
    assert chance.of_a_hit(0, 0, 2) == 0.0


def test_what_nobody_can_read_is_right_by_no_chance():
    assert chance.of_another_answer([None, None, None]) == 0.0
    assert chance.of_another_answer(["a", "a", None]) == pytest.approx(2 / 6)
