"""Judges of the tasks: the truth scores 1, a wrong answer less, and prompts are what users type."""

import dataclasses

import numpy as np
import pytest

from cm3jax.emblems import draw_scene
from cm3jax.emblems.scene import Scene, Shape
from cm3jax.emblems.task_cases import NAMES, asked
from cm3jax.errors import UserError
from cm3jax.sequence.document import parse_prompt
from cm3jax.tasks.task import fill
from experiments.miniature.scores.task_scores import (
    JUDGES,
    attributes,
    box_iou,
    by_chance,
    class_iou,
    evaluate_tasks,
    story_order,
    story_scenes,
    write_prompt,
)


def truth(case):
    answer = case.case.values["answer"]
    return answer if isinstance(answer, tuple) else (answer,)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_is_right_and_another_one_is_not(name):
    cases = [asked(name, "prompts", index) for index in range(4)]
    for _, judge in JUDGES[name]:
        assert [judge(case, truth(case)) for case in cases] == pytest.approx([1.0] * 4)
        if judge is not story_order:  # every story has the same number of segments
            assert by_chance(cases, judge) < 1


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_in_the_notation_and_names_files_that_are_there(name, tmp_path):
    case = asked(name, "prompts", 0)
    parts = parse_prompt(write_prompt(case, tmp_path))
    paths = [part.path for part in parts if hasattr(part, "path")]
    assert len(paths) == ("image" in case.case.values) == len(list(tmp_path.iterdir()))
    assert all(str(tmp_path) in path for path in paths)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_has_the_texts_that_training_had(name, tmp_path):
    case = asked(name, "prompts", 0)
    values = case.case.values
    filled = fill(case.case.task.fitting(set(values) - {"answer"})[0], values)
    learned = [
        p for n, p in enumerate(filled.parts) if isinstance(p, str) and n not in filled.answer
    ]
    prompt = parse_prompt(write_prompt(case, tmp_path))
    assert [part for part in prompt if isinstance(part, str)] == learned


SCENE = Scene(
    "sand", shapes=(Shape(1, "circle", "red", "large"), Shape(8, "ring", "blue", "small"))
)


def changed(**change):
    """The scene with another first shape, drawn, as an answer."""
    shapes = (dataclasses.replace(SCENE.shapes[0], **change), SCENE.shapes[1])
    return (draw_scene(dataclasses.replace(SCENE, shapes=shapes)),)


def case_of(name):
    return dataclasses.replace(asked(name, "prompts", 0), scenes=(SCENE,))


def test_attributes_are_counted_one_by_one():
    case = case_of("edges")
    assert attributes(case, changed()) == 1
    assert attributes(case, changed(colour="green")) == pytest.approx(8 / 9)
    assert attributes(case, changed(cell=2)) == pytest.approx(5 / 9)
    more = dataclasses.replace(SCENE, shapes=(*SCENE.shapes, Shape(9, "ring", "red", "large")))
    assert attributes(case, (draw_scene(more),)) == pytest.approx(9 / 13)
    assert attributes(case, (np.zeros((32, 32, 3), np.uint8),)) == 0


def test_classes_overlap_by_pixels():
    case = case_of("segmentation")
    assert class_iou(case, changed(colour="green")) == 1
    assert class_iou(case, changed(cell=2)) == pytest.approx(0.5)
    assert class_iou(case, changed(shape="square")) == pytest.approx(1 / 3)
    small = class_iou(case, changed(size="small"))
    assert 0.5 < small < 1


def test_boxes_overlap_with_things_of_their_label():
    case = case_of("grounded")
    assert box_iou(case, changed()) == 1
    assert box_iou(case, changed(cell=2)) == pytest.approx(0.5)
    assert box_iou(case, changed(colour="green")) == pytest.approx(1 / 3)


def test_a_story_is_judged_by_what_it_tells_itself():
    case = asked("story", "prompts", 0)
    pictures = truth(case)
    assert story_order(case, pictures[:-1]) == 0
    assert story_scenes(case, pictures[:-1]) == pytest.approx(2 / 3)
    repeated = (pictures[0], pictures[1], pictures[0], pictures[3], pictures[4])
    assert story_order(case, repeated) == 1
    assert story_scenes(case, repeated) == pytest.approx(2 / 3)


def test_an_unknown_task_is_said():
    with pytest.raises(UserError, match="no task 'cooking'"):
        evaluate_tasks("nowhere", tasks=("cooking",))
