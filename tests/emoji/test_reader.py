import numpy as np
import pytest

from cm3jax.emoji.grounds import ground
from cm3jax.emoji.reader import EmojiReader


@pytest.fixture(scope="module")
def reader(pictures):
    return EmojiReader(pictures, 64)


@pytest.fixture(scope="module")
def documents(examples):
    return [examples.example("train", index) for index in range(200)]


def test_every_picture_shows_its_scene(reader, documents):
    pictures = np.stack([document.picture for document in documents])
    assert all(reader.shows(pictures, [d.scene for d in documents], styles=True))
    others = [document.scene for document in documents[1:] + documents[:1]]
    assert np.mean(reader.shows(pictures, others)) < 0.02  # one thing in nine may look like it
    bare = np.stack([ground(scene.ground, 64) for scene in others])
    assert not any(reader.shows(bare, others))


def test_noise_changes_nothing(reader, documents):
    pictures = np.stack([document.picture for document in documents])
    noisy = pictures + np.random.default_rng(0).normal(0, 12, pictures.shape)
    noisy = noisy.clip(0, 255).astype(np.uint8)
    assert np.mean(reader.shows(noisy, [d.scene for d in documents])) == 1


def test_a_thing_is_found_wherever_it_is(reader, documents):
    for document in [d for d in documents if d.kind == "thing"][:20]:
        (placed,), (thing,) = document.scene.things, document.scene.known(reader.catalogue)
        reading = reader.read(document.picture)
        assert (reading.place, reading.size) == (placed.place, placed.size)
        assert reading.look == thing.look(placed.style)
        assert reading.distance < 0.6  # rounding


def test_chance_is_one_of_the_things(reader):
    assert reader.candidates == 41
    assert reader.chance == 1 / 9
