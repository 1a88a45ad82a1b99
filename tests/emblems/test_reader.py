import itertools

import numpy as np
import pytest

from cm3jax.emblems import Emblem, Scene, draw_scene, example, read_batch, read_scene
from cm3jax.emblems.palette import BACKGROUNDS, COLOURS, SKIN
from cm3jax.emblems.patches import PATCHES, PIXELS, QUARTERS
from cm3jax.emblems.reader import UNREADABLE, nearest_patches
from tests.emblems import documents


def _pictures_and_scenes(some):
    """Images of documents, and what they show."""
    shown = [
        pair
        for document in some
        for pair in zip(documents.pictures(document), document.scenes, strict=False)
    ]
    return np.stack([picture for picture, _ in shown]), [scene.seen() for _, scene in shown]


@pytest.mark.slow  # many; those with noise are read too
def test_all_pictures_are_read_correctly():
    pictures, scenes = _pictures_and_scenes(documents.train() + documents.bank())
    assert len(pictures) > 2900
    readings = read_batch(pictures)
    assert [reading.scene for reading in readings] == scenes
    assert max(reading.distance for reading in readings) < 0.1


@pytest.mark.parametrize("size", [64, 96])
def test_larger_pictures_are_read_correctly(size):
    some = [example("train", index, size=size) for index in range(60)]
    pictures, scenes = _pictures_and_scenes(some)
    assert [reading.scene for reading in read_batch(pictures)] == scenes


@pytest.mark.parametrize("seed", range(3))
def test_noise_changes_nothing(seed):
    pictures, scenes = _pictures_and_scenes(documents.train()[:700])
    noise = np.random.default_rng(seed).normal(0, 12, pictures.shape)
    readings = read_batch((pictures + noise).clip(0, 255).astype(np.uint8))
    assert [reading.scene for reading in readings] == scenes
    assert max(reading.distance for reading in readings) < UNREADABLE / 2


def test_random_pictures_are_unreadable():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 32, 32, 3), np.uint8)
    flat = rng.integers(0, 256, (200, 1, 1, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    for reading in read_batch(noise):
        assert reading.scene is None
        assert reading.problem.startswith("nothing that can be read")
    assert all(r.scene is None or r.scene == Scene(r.scene.background) for r in read_batch(flat))


def test_random_patches_never_crash_and_never_lie():
    """Whatever is read, drawing it gives back the same patches."""
    rng = np.random.default_rng(1)
    pictures, _ = _pictures_and_scenes(documents.train()[:300])
    for picture in pictures[:150]:  # some cells of another image, or of none
        for _ in range(int(rng.integers(1, 4))):
            y, x = 8 * rng.integers(0, 4, 2)
            picture[y : y + 8, x : x + 8] = PIXELS[rng.integers(len(PIXELS))]
    random = PIXELS[rng.integers(len(PIXELS), size=(100, 4, 4))]
    random = random.transpose(0, 1, 3, 2, 4, 5).reshape(100, 32, 32, 3)
    mixed = np.concatenate([pictures[:150], random])
    readings = read_batch(mixed)
    assert any(reading.scene is None for reading in readings)
    for picture, reading in zip(mixed, readings, strict=True):
        if reading.scene is not None:
            np.testing.assert_array_equal(draw_scene(reading.scene), picture)


def test_letters_everywhere_are_no_word():
    letter = next(n for n, p in enumerate(PATCHES) if p.part == "letter" and p.background)
    cells = PIXELS[[letter] * 16].reshape(4, 4, *PIXELS.shape[1:])
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(32, 32, 3)
    assert read_scene(picture).problem == "its cells do not make one scene"


def test_one_unreadable_cell_is_named():
    picture = draw_scene(Scene("sand"))
    picture[8:16, 24:] = 128
    reading = read_scene(picture)
    assert reading.scene is None
    assert reading.problem == "nothing that can be read at d2"


def test_two_touching_emblems_are_told_apart():
    looks = ((0, 1, 2, 3), (90, 91, 92, 93))
    for first, second in itertools.permutations(range(9), 2):
        scene = Scene("white", (Emblem(first, look=looks[0]), Emblem(second, look=looks[1])))
        if not scene.overlaps():
            assert read_scene(draw_scene(scene)).scene == scene


def test_patches_are_few_distinct_and_far_apart():
    assert len(PATCHES) == len(np.unique(PIXELS, axis=0)) == 509 < 800
    assert QUARTERS == 96
    flat = PIXELS.reshape(len(PIXELS), -1).astype(float)
    squared = np.square(flat).sum(1)
    apart = squared[:, None] + squared - 2 * flat @ flat.T
    np.fill_diagonal(apart, np.inf)
    # Noise of 12 flips a cell when it pushes half of this distance: more than 8 deviations.
    assert np.sqrt(apart.min()) > 2 * 8 * 12


def test_pictures_consist_only_of_these_patches():
    pictures, _ = _pictures_and_scenes(documents.train()[:1000])
    numbers, distances = nearest_patches(pictures)
    assert distances.max() < 0.1
    assert len(np.unique(numbers)) > 450


def test_colours_are_far_apart():
    colours = {**BACKGROUNDS, **COLOURS, "skin": SKIN}
    for (a, left), (b, right) in itertools.combinations(colours.items(), 2):
        limit = 80 if "skin" in (a, b) else 99
        assert np.linalg.norm(np.subtract(left, right)) > limit, (a, b)


@pytest.mark.parametrize("shape", [(31, 31, 3), (40, 40, 3)])
def test_pictures_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 32"):
        nearest_patches(np.zeros((1, *shape), np.uint8))
