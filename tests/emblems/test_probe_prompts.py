import dataclasses

import numpy as np
import pytest

from cm3jax.emblems import (
    Scene,
    confirms,
    confirms_batch,
    confirms_emblems,
    draw_scene,
    example,
    prompts,
    read_scene,
    tells,
)
from cm3jax.emblems.examples import bank_documents
from cm3jax.emblems.looks import catalogue
from cm3jax.emblems.probe_prompts import LOWER_HALF
from tests.emblems import documents

KINDS = ("scene", "heldout", "heldout_pair", "caption", "infill")


@pytest.mark.parametrize("kind", KINDS)
def test_their_own_pictures_and_captions_confirm_them(kind):
    some = prompts(kind, 100)
    scenes = [prompt.scene for prompt in some]
    assert all(confirms_batch(np.stack([prompt.image for prompt in some]), scenes))
    assert all(tells(prompt.text, prompt.scene) for prompt in some)
    assert not any(tells(prompt.text, scenes[i - 1]) for i, prompt in enumerate(some))
    assert len({prompt.text for prompt in some}) > 95


@pytest.mark.parametrize("kind", KINDS)
def test_they_do_not_depend_on_how_many_are_asked_for(kind):
    few, more = prompts(kind, 3), prompts(kind, 5)
    assert [(p.key, p.text, p.scene) for p in few] == [(p.key, p.text, p.scene) for p in more[:3]]
    assert [p.text for p in prompts(kind, 3, seed=1)] != [p.text for p in few]


def test_no_document_repeats_the_scene_of_a_prompt():
    told = {p.scene.told() for kind in KINDS for p in prompts(kind, 100)}
    for document in documents.train() + documents.bank():
        assert told.isdisjoint(scene.told() for scene in document.scenes)


def test_heldout_emblems_are_where_no_document_shows_them():
    names = catalogue(0).names
    for prompt in prompts("heldout", 30):
        emblem = prompt.scene.emblems[0]
        assert emblem.name in catalogue(0).memory_only
        for index in bank_documents(names.index(emblem.name)):
            known = example("bank", index).scene.emblems[0]
            assert (known.name, known.look) == (emblem.name, emblem.look)
            assert known.place != emblem.place


def test_pairs_name_two_memory_only_emblems_that_no_document_joins():
    for prompt in prompts("heldout_pair", 60):
        names = {emblem.name for emblem in prompt.scene.emblems}
        assert len(names) == 2
        assert names <= catalogue(0).memory_only
    assert all(len(document.scene.emblems) == 1 for document in documents.bank())


def test_infilling_has_something_to_restore():
    for prompt in prompts("infill", 60):
        assert any(shape.cell in LOWER_HALF for shape in prompt.scene.shapes)
        assert not prompt.scene.emblems


def test_anything_wrong_in_the_picture_is_noticed():
    """One cell changed to another prompt's never passes, nor does a blanked one."""
    for first, second in zip(prompts("heldout", 20), prompts("heldout_pair", 20), strict=True):
        changed, blanked = (first.image[None].repeat(16, 0) for _ in range(2))
        for cell in range(16):
            y, x = 8 * (cell // 4), 8 * (cell % 4)
            changed[cell, y : y + 8, x : x + 8] = second.image[y : y + 8, x : x + 8]
            blanked[cell, y : y + 8, x : x + 8] = 128
        same = (changed == first.image).all((1, 2, 3)).tolist()
        assert confirms_batch(changed, [first.scene] * 16) == same
        assert not any(confirms_batch(blanked, [first.scene] * 16))
        assert confirms(first.image, first.scene)


def test_the_name_is_not_in_the_picture():
    prompt = prompts("heldout", 1)[0]
    seen = read_scene(prompt.image).scene
    assert isinstance(seen, Scene)
    assert seen.emblems[0].name is None
    assert seen.emblems[0].look == prompt.scene.emblems[0].look


def test_unknown_kinds_are_refused():
    with pytest.raises((ValueError, TypeError)):
        prompts("poem", 1)


def test_an_emblem_is_confirmed_whatever_is_next_to_it():
    first, second = prompts("heldout", 2)
    beside = dataclasses.replace(first.scene, shapes=(), background="white")
    noise = np.random.default_rng(0).integers(0, 256, first.image.shape, np.uint8)
    images = np.stack([first.image, draw_scene(beside), second.image, noise])
    assert confirms_emblems(images, [first.scene] * 4) == [True, True, False, False]
