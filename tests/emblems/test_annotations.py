import numpy as np
import pytest

from cm3jax.emblems import Emblem, Scene, Shape, draw_scene, read_scene
from cm3jax.emblems.annotations import annotate
from cm3jax.emblems.palette import BACKGROUNDS
from tests.emblems import documents

SCENE = Scene(
    "sand",
    (Emblem(0, "zomirak", (0, 1, 2, 3)),),
    (Shape(15, "square", "red", "large"), Shape(12, "ring", "blue", "small")),
)


def test_boxes_and_depth_of_a_known_scene():
    known = annotate(SCENE, "k")
    emblem, ring, square = known.boxes
    assert (emblem.label, emblem.top, emblem.left, emblem.bottom, emblem.right) == (
        "the zomirak emblem",
        *(0, 0, 0.5, 0.5),
    )
    assert (square.label, square.top, square.bottom) == ("a large red square", 25 / 32, 31 / 32)
    assert (ring.label, ring.left, ring.right) == ("a small blue ring", 2 / 32, 6 / 32)
    assert known.depth == (0, 1, 2)


def test_segmentation_covers_exactly_what_is_not_background():
    for document in documents.train()[:200]:
        for picture, scene in zip(documents.pictures(document), document.scenes, strict=True):
            known = annotate(scene, document.key)
            background = (picture == BACKGROUNDS[scene.background]).all(-1)
            np.testing.assert_array_equal(known.segmentation == 0, background)
            assert set(np.unique(known.segmentation)) == set(range(len(known.boxes) + 1))
            assert sorted(known.depth) == list(range(len(known.boxes)))
            for number, box in enumerate(known.boxes, 1):
                inside = np.zeros((32, 32), bool)
                rows, columns = (
                    slice(round(32 * low), round(32 * high))
                    for low, high in ((box.top, box.bottom), (box.left, box.right))
                )
                inside[rows, columns] = True
                assert not (known.segmentation[~inside] == number).any()


def test_edges_are_where_neighbours_differ():
    known = annotate(Scene("white", shapes=(Shape(0, "square", "red", "large"),)), "k")
    rows, columns = np.nonzero(known.edges)
    assert known.edges.sum() == 4 * 6 - 1  # both sides meet in the lower right corner
    assert set(rows) | set(columns) == set(range(7))


def test_questions_have_answers_and_reasons():
    asked = set()
    for document in documents.train()[:200]:
        questions = annotate(document.scene, document.key).questions
        assert 1 <= len(questions) <= 3
        assert len({question.question for question in questions}) == len(questions)
        assert all(question.answer and question.rationale for question in questions)
        asked |= {question.question.split()[1] for question in questions}
    assert asked == {"is", "many", "emblem", "colour"}


def test_answers_are_right():
    by_question = {
        question.question: question.answer
        for seed in range(50)
        for question in annotate(SCENE, str(seed)).questions
    }
    assert by_question == {
        "what is the background?": "sand",
        "which emblem is at the top left?": "zomirak",
        "what colour is the shape at d4?": "red",
        "what colour is the shape at a4?": "blue",
        "what colour is the square?": "red",
        "what colour is the ring?": "blue",
        "how many square shapes are there?": "one",
        "how many ring shapes are there?": "one",
    }


def test_edits_change_the_scene_into_another_that_can_be_drawn_and_read():
    for document in documents.train()[:300]:
        edit = annotate(document.scene, document.key).edit
        assert edit.instruction
        assert edit.scene.seen() != document.scene.seen()
        assert read_scene(draw_scene(edit.scene)).scene == edit.scene.seen()


@pytest.mark.parametrize("size", [32, 64])
def test_annotations_have_the_pictures_size_and_depend_only_on_the_key(size):
    first, second = (annotate(SCENE, "k", size) for _ in range(2))
    assert first.segmentation.shape == first.edges.shape == (size, size)
    assert (first.questions, first.edit) == (second.questions, second.edit)
    assert first.boxes == annotate(SCENE, "k").boxes
