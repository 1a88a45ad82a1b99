import collections
import itertools

import numpy as np
import pytest

from cm3jax.emblems.scene import PLACES
from cm3jax.emoji.draw import draw
from cm3jax.emoji.examples import Examples
from cm3jax.emoji.grounds import GROUNDS, ground
from cm3jax.emoji.looks import SIDES, apart
from cm3jax.emoji.scene import EmojiScene, Placed, caption_names, emoji_caption
from cm3jax.retrieval.clauses import clauses


@pytest.fixture(scope="module")
def some(examples):
    return {
        "train": [examples.example("train", index) for index in range(300)],
        "validation": [examples.example("validation", index) for index in range(60)],
        "bank": [examples.example("bank", index) for index in range(examples.bank_size)],
    }


def test_captions():
    france = Placed("the flag of France", "Twemoji", tells_style=False)
    assert emoji_caption(EmojiScene("moon", (france,))) == "the flag of France on the moon"
    apple = Placed("a red apple", "Noto", PLACES.index("top left"), "small")
    fish = Placed("fish", "OpenMoji", PLACES.index("right"), "small", tells_style=False)
    text = emoji_caption(EmojiScene("sky", (apple, fish)))
    assert text == (
        "a small red apple in Noto's style at the top left and small fish at the right in the sky"
    )
    assert len(clauses(text)) == 2


@pytest.mark.parametrize("noun", ["the flag of France", "a cat face", "fish"])
def test_a_caption_names_its_thing_and_no_other(noun):
    for place, size, style in itertools.product((0, 4), SIDES, (True, False)):
        text = emoji_caption(EmojiScene("moon", (Placed(noun, "Noto", place, size, style),)))
        assert caption_names(text, noun)
        assert not caption_names(text, "a cat")
        assert not caption_names(text, "the flag of Fran")
    assert not caption_names("", noun)


def test_a_document_is_a_function_of_seed_split_and_index(pictures, examples):
    first, again = examples.example("train", 7), Examples(pictures, 3, 64).example("train", 7)
    other = Examples(pictures, 4, 64).example("train", 7)
    assert first.scene == again.scene
    np.testing.assert_array_equal(first.picture, again.picture)
    assert first.scene != other.scene


def test_training_never_shows_what_is_held_out(pictures, some):
    for example in some["train"] + some["validation"]:
        things = example.scene.known(pictures)
        for placed, thing in zip(example.scene.things, things, strict=True):
            assert placed.style in thing.shown
        if len(things) == 2:
            assert not apart(*things)
            assert things[0] != things[1]


def test_the_bank_shows_every_picture_twice_and_says_which_are_held_out(pictures, some):
    shown = collections.Counter(
        (placed.noun, placed.style, placed.size)
        for example in some["bank"]
        for placed in example.scene.things
    )
    every = {
        (thing.noun, style, size)
        for thing in pictures.things
        for style, _ in thing.looks
        for size in SIDES
    }
    assert shown == dict.fromkeys(every, 1)
    for example in some["bank"]:
        (placed,), (thing,) = example.scene.things, example.scene.known(pictures)
        assert (example.kind == "memory") == (placed.style in thing.held_out)


def test_no_scene_is_in_two_splits(some):
    scenes = {split: {e.scene for e in found} for split, found in some.items()}
    for one, other in itertools.combinations(scenes.values(), 2):
        assert not one & other


def test_kinds_and_turns(some):
    kinds = collections.Counter(example.kind for example in some["train"])
    assert kinds["thing"] + kinds["pair"] == 300
    assert kinds["pair"] == pytest.approx(120, abs=2)
    firsts = collections.Counter(e.scene.nouns[0] for e in some["train"] if e.kind == "thing")
    assert max(firsts.values()) - min(firsts.values()) <= 3


def test_licences_are_those_of_all_artists(pictures, some):
    for example in some["train"]:
        expected = {pictures.artists[placed.style] for placed in example.scene.things}
        assert example.licence.split(" AND ") == sorted(licence for _, licence in expected)
        assert example.source.split("; ") == sorted(artist for artist, _ in expected)


def test_a_thing_is_where_its_scene_says(pictures):
    scene = EmojiScene("pink", (Placed("a rocket", "Twemoji", PLACES.index("bottom"), "small"),))
    picture = draw(scene, pictures, 64)
    changed = (picture != ground("pink", 64)).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert 32 <= rows[0] < rows[-1] < 64
    assert 16 <= columns[0] < columns[-1] < 48
    sprite = pictures.sprites["small"][pictures.by_noun["a rocket"].look("Twemoji")]
    solid = sprite[..., 3] == 255
    np.testing.assert_array_equal(picture[32:, 16:48][solid], sprite[solid][:, :3])


def test_grounds_differ():
    known = np.stack([ground(name, 64).astype(int) for name in GROUNDS])
    for one, other in itertools.combinations(known, 2):
        assert np.abs(one - other).max(-1).mean() > 15


def test_the_bank_ends(examples):
    with pytest.raises(IndexError):
        examples.example("bank", examples.bank_size)
    with pytest.raises(IndexError):
        examples.example("prompts", 0)
