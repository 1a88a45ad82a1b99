"""Against `reference/vqa.json`, which the official script made."""

import json
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.vqa import accuracy, normalise_answer

STORED = json.loads((Path(__file__).parent / "reference/vqa.json").read_text())


def test_answers_are_normalised_as_the_official_script_does():
    assert len(STORED["normalised"]) > 150
    assert {answer: normalise_answer(answer) for answer in STORED["normalised"]} == STORED[
        "normalised"
    ]


@pytest.mark.parametrize("case", STORED["judged"], ids=lambda case: case["answer"])
def test_answers_are_judged_as_the_official_script_does(case):
    assert accuracy(case["answer"], case["people"]) == pytest.approx(case["accuracy"], abs=1e-9)


def test_empty_annotations_raise_user_error():
    with pytest.raises(UserError, match="without anybody"):
        accuracy("yes", [])
