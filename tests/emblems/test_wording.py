import random
import re

import pytest

from cm3jax.emblems import Emblem, Scene, Shape, caption, caption_states
from cm3jax.emblems.sample import claims, plain_scene
from cm3jax.emblems.wording import MAX_CLAUSES, RELATIONS, Relation, relations
from tests.emblems import documents

RED = Shape(9, "circle", "red", "large")
BLUE = Shape(3, "square", "blue", "small")
SCENE = Scene("sand", shapes=(RED, BLUE))


def test_captions_read_as_documented():
    assert caption(SCENE) == "a small blue square at d1 and a large red circle at b3 on sand"
    assert caption(SCENE, (Relation(RED, "left of", BLUE),), background_first=True) == (
        "on sand, a small blue square at d1 and a large red circle at b3, "
        "the circle is left of the square"
    )
    pair = Scene("sky", (Emblem(8, "velunto"), Emblem(0, "zomirak")))
    assert caption(pair) == (
        "the zomirak emblem at the top left and the velunto emblem at the bottom right on sky"
    )
    assert caption(Scene("sky", word="melo")) == "the word melo on sky"
    assert caption(Scene("white", fingers=4)) == "a palm with four fingers on white"


def test_every_caption_of_the_dataset_parses_back():
    seen = 0
    for document in documents.train() + documents.bank():
        before = None
        for text, scene in zip(documents.texts(document), document.scenes, strict=False):
            before = caption_states(text, before)
            assert before == scene.told(), text
            seen += 1
    assert seen > 2900


def test_long_captions_parse_back_and_have_at_most_twelve_clauses():
    longest = 0
    for number in range(600):
        rng = random.Random(number)
        scene = plain_scene(rng)
        text = caption(scene, claims(rng, scene), background_first=number % 2 == 0)
        assert caption_states(text) == scene, text
        longest = max(longest, len(scene.shapes) + text.count(" is "))
    assert longest == MAX_CLAUSES


def test_a_false_relation_is_noticed():
    opposite = {
        "left of": "right of",
        "above": "below",
        "larger than": "smaller than",
    }
    opposite |= {value: key for key, value in opposite.items()}
    assert set(opposite) == set(RELATIONS)
    for number in range(300):
        scene = plain_scene(random.Random(number))
        for claim in relations(scene):
            text = caption(scene, (claim,))
            head, _, end = text.rpartition(f" is {claim.relation} ")
            assert caption_states(text) == scene
            assert caption_states(f"{head} is {opposite[claim.relation]} {end}") is None


def test_every_single_word_matters():
    """No caption with a word replaced by another of the dataset's says the same scene."""
    words = sorted(
        {w for d in documents.train()[:300] for t in documents.texts(d) for w in t.split()}
    )
    rng = random.Random(0)
    changed = 0
    for document in documents.train()[:300]:
        text = documents.texts(document)[0]
        told = document.scene.told()
        parts = re.split("( )", text)
        place = 2 * rng.randrange((len(parts) + 1) // 2)
        new = rng.choice(words)
        # Linking words and the order of relations' words carry no scene of their own.
        if parts[place].strip(",") in ("and", "with", "the", "is", "of", "than", "a", "on", "at"):
            continue
        if new.strip(",") != parts[place].strip(","):
            parts[place] = new
            assert caption_states("".join(parts)) != told, (text, "".join(parts))
            changed += 1
    assert changed > 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on",
        "on sand",
        "a dog",
        "a large red circle at b3",
        "a large red circle at e3 on sand",
        "a large red circle at b3 on grass",
        "a large red circle at b3 and a small blue square at b3 on sand",
        "the zomirak emblem at the top and the velunto emblem at the centre on sky",
        "the zomirak emblem at the top with a small red circle at b2 on sky",
        "the word abcdefghi on sky",
        "a palm with seven fingers on white",
        "it turns blue",
        "a large red circle at b3 on sand, the square is left of the circle",
        "a large red circle at b3 and a small red circle at a1 on sand, "
        "the circle is left of the red circle",
        "<break>",
    ],
)
def test_texts_that_are_not_captions_assert_nothing(text):
    assert caption_states(text) is None


def test_steps_start_from_the_scene_before():
    start = Scene("sky", shapes=(RED,))
    for text, shape in {
        "it moves to c4": Shape(14, "circle", "red", "large"),
        "it turns blue": Shape(9, "circle", "blue", "large"),
        "it becomes a ring": Shape(9, "ring", "red", "large"),
        "it becomes small": Shape(9, "circle", "red", "small"),
    }.items():
        assert caption_states(text, start) == Scene("sky", shapes=(shape,))
    assert caption_states("it turns blue", SCENE) is None
