import numpy as np
import pytest

from cm3jax.emoji.looks import apart
from cm3jax.emoji.prompts import emoji_prompts
from cm3jax.emoji.scene import emoji_caption


@pytest.mark.parametrize("kind", ["heldout", "flag", "style"])
def test_prompts_ask_for_what_training_never_shows(examples, kind):
    asked = emoji_prompts(examples, kind, 30)
    documents = [examples.example("bank", index) for index in range(examples.bank_size)]
    train = [examples.example("train", index) for index in range(300)]
    seen = {example.scene for example in documents + train}
    shown = {(p.noun, p.style) for example in train for p in example.scene.things}
    for prompt in asked:
        (placed,) = prompt.scene.things
        assert (placed.noun, placed.style) not in shown
        assert prompt.scene not in seen
        assert prompt.text == emoji_caption(prompt.scene)
        assert f"in {placed.style}'s style" in prompt.text
        assert kind != "flag" or placed.noun.startswith("the flag of")
        (thing,) = prompt.scene.known(examples.catalogue)
        assert bool(thing.shown) == (kind == "style")


def test_things_that_training_never_shows_together(examples):
    for prompt in emoji_prompts(examples, "together", 10):
        first, second = prompt.scene.known(examples.catalogue)
        assert apart(first, second)
        for placed, thing in zip(prompt.scene.things, (first, second), strict=True):
            assert placed.style in thing.shown


def test_prompts_are_the_same_every_time(examples):
    first, again = emoji_prompts(examples, "heldout", 3), emoji_prompts(examples, "heldout", 2)
    assert [prompt.scene for prompt in first[:2]] == [prompt.scene for prompt in again]
    np.testing.assert_array_equal(first[0].image, again[0].image)


def test_kinds_that_nothing_fits(examples):
    with pytest.raises(ValueError, match="no things for prompts of kind 'pair'"):
        emoji_prompts(examples, "pair", 1)  # only one of the test's things is held out
