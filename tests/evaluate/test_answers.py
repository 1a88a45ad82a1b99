"""Captions and answers in others' files, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.answers import score_caption_file, score_vqa_file
from cm3jax.evaluate.protocol import scores_from_json
from launch.evaluate import run

REFERENCE = Path(__file__).parent / "reference"


def write(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def caption_files(tmp_path, stored):
    made = [{"image_id": i, "caption": text} for i, text in enumerate(stored["captions"])]
    annotations = [
        {"id": 10 * i + j, "image_id": i, "caption": text}
        for i, texts in enumerate(stored["references"])
        for j, text in enumerate(texts)
    ]
    return write(tmp_path / "made.json", made), write(
        tmp_path / "captions.json", {"annotations": annotations}
    )


def test_caption_files_get_pycocoevalcap_s_scores_with_intervals(tmp_path, capsys):
    stored = json.loads((REFERENCE / "captions.json").read_text())["sets"][0]
    made, annotations = caption_files(tmp_path, stored)
    out = tmp_path / "scores.json"
    run(["captions", "--made", made, "--captions", annotations, "--out", str(out)])
    assert "rouge_l" in capsys.readouterr().out
    scores = scores_from_json(json.loads(out.read_text()))
    expected = {f"bleu_{i}": value for i, value in enumerate(stored["bleu"], 1)}
    expected |= {name: float(np.mean(stored[name])) for name in ("rouge_l", "cider")}
    assert {name: pytest.approx(s.value, abs=1e-6) for name, s in scores.items()} == expected
    for score in scores.values():
        assert score.interval[0] < score.value < score.interval[1]
        assert score.n == 40
        assert score.protocol.prompts == "40 of captions.json"
        assert score.protocol.sampler == "not known"


def test_answers_get_their_accuracy_by_type(tmp_path):
    cases = json.loads((REFERENCE / "vqa.json").read_text())["judged"]
    made = [{"question_id": i, "answer": case["answer"]} for i, case in enumerate(cases)]
    annotations = [
        {
            "question_id": i,
            "answer_type": ("yes/no", "other")[i % 2],
            "answers": [{"answer": one} for one in case["people"]],
        }
        for i, case in enumerate(cases)
    ]
    files = (
        write(tmp_path / "m.json", made),
        write(tmp_path / "a.json", {"annotations": annotations}),
    )
    run(["vqa", "--made", files[0], "--annotations", files[1], "--out", str(tmp_path / "s.json")])
    scores = scores_from_json(json.loads((tmp_path / "s.json").read_text()))
    right = [case["accuracy"] for case in cases]
    assert scores["accuracy.all"].value == pytest.approx(np.mean(right))
    assert scores["accuracy.yes_no"].value == pytest.approx(np.mean(right[::2]))
    assert scores["accuracy.other"].n == len(right[1::2])
    write(tmp_path / "m.json", made[1:])
    with pytest.raises(UserError, match="do not hold the same questions, 0 first"):
        score_vqa_file(*files)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"a": 1}, "is not a list of objects with image_id and caption"),
        ([{"image_id": 1}], "is not a list of objects with image_id and caption"),
        ([], "holds no answers"),
        ([{"image_id": 1, "caption": "x"}] * 2, "image_id 1 twice"),
        ([{"image_id": 5, "caption": "x"}], "no caption of image 5"),
    ],
)
def test_a_file_of_another_form_raises_user_error(tmp_path, made, message):
    rows = [{"image_id": 1, "caption": "a cat"}]
    annotations = write(tmp_path / "a.json", {"annotations": rows})
    with pytest.raises(UserError, match=message):
        score_caption_file(write(tmp_path / "m.json", made), annotations)


def vqa(tmp_path, people, made="yes", number=1, asked=1):
    """Accuracy of one answer against what people said."""
    mine = write(tmp_path / "m.json", [{"question_id": number, "answer": made}])
    theirs = {"annotations": [{"question_id": asked, "answers": people}]}
    scores = score_vqa_file(mine, write(tmp_path / "p.json", theirs))
    return scores["accuracy.all"].value


def test_answers_may_be_texts_and_ids_numbers_or_texts(tmp_path):
    for people in (["yes"] * 10, [{"answer": "yes"}] * 10):
        assert vqa(tmp_path, people) == 1.0
        assert vqa(tmp_path, people, number="1") == vqa(tmp_path, people, asked=1.0) == 1.0
    assert vqa(tmp_path, ["0"] * 9 + ["zero"], made=None) == 0.0, "null is no `none`"
    (tmp_path / "bom.json").write_text(
        json.dumps([{"question_id": 1, "answer": "yes"}]), encoding="utf-8-sig"
    )
    people = write(tmp_path / "p.json", [{"question_id": 1, "answers": ["yes"] * 10}])
    assert score_vqa_file(tmp_path / "bom.json", people)["accuracy.all"].value == 1.0


@pytest.mark.parametrize(
    ("people", "message"),
    [
        (None, "nobody's answers to question 1; test splits"),
        ([], "nobody's answers"),
        ([{"raw_answer": "yes"}] * 10, "answers without `answer`"),
        ([["yes"]] * 10, "which is no text"),
    ],
)
def test_malformed_answers_raise_user_error(tmp_path, people, message):
    with pytest.raises(UserError, match=message):
        vqa(tmp_path, people)


def test_a_question_with_two_sets_of_answers_is_refused_and_one_that_comes_twice_is_not(tmp_path):
    made = write(tmp_path / "m.json", [{"question_id": 1, "answer": "yes"}])
    yes, no = ({"question_id": 1, "answers": [answer] * 10} for answer in ("yes", "no"))
    twice = write(tmp_path / "twice.json", {"annotations": [yes, yes]})
    assert score_vqa_file(made, twice)["accuracy.all"].value == 1.0
    both = write(tmp_path / "both.json", {"annotations": [yes, no]})
    with pytest.raises(UserError, match="has two sets of answers to question 1; leave the right"):
        score_vqa_file(made, both)


def test_null_references_are_none_and_ids_are_checked(tmp_path):
    def score(captions, references):
        annotations = write(tmp_path / "r.json", {"annotations": references})
        return score_caption_file(write(tmp_path / "c.json", captions), annotations)

    two = [{"image_id": "1", "caption": "a cat"}, {"image_id": 2, "caption": "a dog"}]
    real = [{"image_id": 1, "caption": "a cat"}, {"image_id": 2, "caption": "a dog"}]
    assert score(two, [*real, {"image_id": 1, "caption": None}])["bleu_1"].value == pytest.approx(1)
    with pytest.raises(UserError, match="has no caption of image 1"):
        score(two, [{"image_id": 1, "caption": None}, real[1]])
    with pytest.raises(UserError, match=r"has image_id \[1\], which is neither"):
        score([{"image_id": [1], "caption": "x"}], real)
    with pytest.raises(UserError, match="answers image_id 1 twice"):
        score([*two, {"image_id": 1.0, "caption": "x"}], real)
