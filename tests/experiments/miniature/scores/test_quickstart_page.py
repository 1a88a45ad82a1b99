import dataclasses
import json
import re

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.results import Cell, Chosen, Evaluation, Figure
from experiments.miniature.scores.quickstart_page import report
from tests.evaluate.test_protocol import score

IMAGE = np.full((32, 32, 3), 7, np.uint8)
METRICS = {"versions": {"jax": "0.10.2"}, "seconds": {"data": 12.5}}


@pytest.fixture
def evaluation() -> Evaluation:
    cells = (
        Cell.of("retrieved, 0.91", IMAGE, "the <zorb> emblem"),
        Cell.of("2 documents", IMAGE, correct=True),
        Cell.of("0 documents", IMAGE, correct=False),
    )
    return Evaluation(
        run="runs/x/decoder",
        scores={
            "heldout_emblem_accuracy.docs_0": score(0, retrieved=0, documents="none"),
            "heldout_emblem_accuracy.docs_2": score(186),
            "another_score": score(3),
        },
        figures=(Figure("heldout_emblem_accuracy", "a <zorb> & a circle", cells),),
        losses={"loss_text": [(10, 3.0), (20, 2.0)], "loss_image": [(10, 6.5), (20, 5.0)]},
        weights={"decoder": "abc"},
        pictures="def",
        seconds=1.5,
    )


def test_results_survive_their_file(evaluation, tmp_path):
    evaluation.save(tmp_path / "result.json")
    assert Evaluation.load(tmp_path / "result.json") == evaluation


@pytest.mark.parametrize("content", ["{", "{}", '{"figures": 3}', "[]"])
def test_a_damaged_file_raises_user_error(content, tmp_path):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json"):
        Evaluation.load(tmp_path / "result.json")


def test_the_page_shows_scores_with_interval_chance_and_regime(evaluation):
    html = report({"shipped": evaluation}, METRICS)
    assert "93.0 %" in html
    assert "n = 200" in html
    assert "zero-shot, 2 retrieved" in html
    assert "heldout_emblem_accuracy.docs_2" in html
    assert "another_score" in html  # a score without a section of its own is not lost
    assert html.count("✓ right") == 1
    assert html.count("✗ wrong") == 1
    assert "a &lt;zorb&gt; &amp; a circle" in html
    assert html.count("<polyline") == 2


def test_a_score_that_one_model_lacks_is_a_dash(evaluation):
    poorer = dataclasses.replace(evaluation, scores={"another_score": score(1)})
    html = report({"shipped": evaluation, "trained_here": poorer}, METRICS)
    assert html.count('<td class="number">–</td>') == 2


def test_the_page_says_what_was_trained_here_and_what_is_absent(evaluation):
    both = report({"shipped": evaluation, "trained_here": evaluation}, METRICS)
    assert "trained for a few minutes" in both
    alone = report({"trained_here": evaluation}, METRICS)
    assert "holds no shipped weights" in alone
    assert "holds no shipped weights" not in both


def test_the_page_is_rebuilt_from_json_only(evaluation, tmp_path):
    evaluation.save(tmp_path / "a.json")
    again = Evaluation.load(tmp_path / "a.json")
    metrics = json.loads(json.dumps(METRICS))
    assert report({"shipped": again}, metrics) == report({"shipped": evaluation}, METRICS)


def test_how_shown_cases_were_chosen_is_said_once(evaluation):
    chosen = Chosen.of([True] * 597 + [False] * 3, 2)
    assert chosen.places == [597, 598, 0, 1]
    assert chosen.note.startswith("Not a sample: the 2 worst and then the 2 best of 600 cases")
    (one,) = evaluation.figures
    both = (dataclasses.replace(one, note=chosen.note),) * 2
    html = report({"shipped": dataclasses.replace(evaluation, figures=both)}, METRICS)
    assert html.count("the 2 worst and then the 2 best of 600 cases") == 1
    stored_before = report({"shipped": evaluation}, METRICS)
    assert "Not a sample: cases chosen to show what goes wrong" in stored_before


def test_stamps_are_in_words(evaluation):
    protocol = {"licences": {"MIT": 1 / 3}, "settings": None}
    scores = {"another_score": score(3, **protocol)}
    html = report({"shipped": dataclasses.replace(evaluation, scores=scores)}, METRICS)
    assert "MIT 0.3333" in html
    assert "<td>not known</td>" in html
    assert "{" not in re.sub("<style>.*</style>", "", html, flags=re.DOTALL)
