"""Cases of the tasks: what they ask follows from their scenes, and held-out ones are held out."""

import numpy as np
import pytest

from cm3jax.emblems import caption, confirms, read_scene
from cm3jax.emblems.sample import home
from cm3jax.emblems.scene import Scene, Shape
from cm3jax.emblems.task_cases import NAMES, asked, boxes, short_caption
from cm3jax.emblems.wording import caption_states
from cm3jax.tasks import grounded
from cm3jax.tasks.questions import conclusion


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "prompts"])
def test_cases_are_true_of_scenes_of_their_split(name, split):
    for index in range(3):
        found = asked(name, split, index)
        if all(scene.fingers is None for scene in found.scenes):  # every split has all palms
            assert home(caption(found.scenes[0])) == split
        if name == "story":
            answers = [s for s in found.case.values["answer"] if not isinstance(s, str)]
        else:
            values = found.case.values
            answers = [values["image" if isinstance(values["answer"], str) else "answer"]]
        assert [confirms(p, s) for p, s in zip(answers, found.scenes, strict=True)] == [True] * len(
            answers
        )


def test_a_case_is_a_function_of_its_number():
    def parts(found):
        return {k: v if isinstance(v, str) else v.tobytes() for k, v in found.case.values.items()}

    first = parts(asked("editing", "train", 5))
    assert first == parts(asked("editing", "train", 5))
    assert first != parts(asked("editing", "train", 6))
    assert first != parts(asked("editing", "train", 5, seed=1))
    with pytest.raises(ValueError, match="no split 'test'"):
        asked("editing", "test", 0)


def test_edits_and_stories_of_training_show_no_held_out_scene():
    for index in range(10):
        edit = asked("editing", "train", index)
        assert home(caption(read_scene(edit.case.values["image"]).scene)) == "train"
        story = asked("story", "train", index)
        assert all(home(caption(scene)) != "prompts" for scene in story.scenes)


SCENE = Scene(
    "sand", shapes=(Shape(1, "circle", "red", "large"), Shape(8, "ring", "blue", "small"))
)


def test_the_caption_of_a_map_leaves_out_what_the_map_says():
    assert short_caption(SCENE) == "a red circle and a blue ring on sand"


def test_boxes_are_on_the_grid():
    assert [str(box) for box in boxes(SCENE)] == [
        "red circle at (72, 8) -> (120, 56)",
        "blue ring at (16, 144) -> (48, 176)",
    ]
    assert boxes(SCENE, coloured=False)[1].label == "ring"
    case = asked("grounded", "prompts", 0)
    told = grounded.parse_boxes(case.case.values["boxes"])
    assert [b.left for b in told] == [b.left for b in boxes(case.scenes[0])]


@pytest.mark.parametrize("name", ["segmentation", "edges", "depth"])
def test_maps_say_where_and_how_large(name):
    for index in range(4):
        case = asked(name, "train", index)
        ground = case.case.values["image"][0, 0]
        drawn = (case.case.values["image"] != ground).any(-1)
        for cell in range(16):
            y, x = cell // 4 * 8, cell % 4 * 8
            there = any(shape.cell == cell for shape in case.scenes[0].shapes)
            assert drawn[y : y + 8, x : x + 8].any() == there


def test_the_nearest_thing_is_yellow_in_a_depth_map():
    case = asked("depth", "train", 1)
    lowest = max(case.scenes[0].shapes, key=lambda shape: shape.cell // 4)
    pixels = case.case.values["image"].reshape(4, 8, 4, 8, 3)[lowest.cell // 4]
    assert (pixels == np.array((255, 225, 40))).all(-1).any()


def test_long_captions_are_true_and_have_relations():
    for index in range(5):
        case = asked("long_caption", "prompts", index)
        text = case.case.values["answer"]
        assert " is " in text
        assert caption_states(text) == case.scenes[0]


def test_a_rationale_ends_with_one_of_the_options():
    for index in range(20):
        values = asked("science", "train", index).case.values
        options = values["options"].split(", ")
        assert conclusion(values["answer"]) in options
        assert len(set(options)) == 4
