import numpy as np

from cm3jax.evaluate.nearest import cells, nearest_pictures


def pictures(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def test_cells_are_mean_colours():
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[0, :2, :2] = [[255, 51, 0]]
    found = cells(picture).reshape(16, 16, 3)
    np.testing.assert_allclose(found[0, 0], [1, 0.2, 0], atol=1e-6)
    assert found[0, 1:].max() == found[1:].max() == 0
    assert cells(picture[:, :8, :8]).shape == (1, 8 * 8 * 3)  # no smaller than it is


def test_each_picture_is_nearest_to_itself_and_stays_so_with_noise():
    every = pictures(200)
    candidates = cells(every)
    assert nearest_pictures(every, candidates).tolist() == list(range(200))
    noise = np.random.default_rng(1).normal(0, 20, every.shape)
    noisy = np.clip(every + noise, 0, 255).astype(np.uint8)
    assert nearest_pictures(noisy, candidates).tolist() == list(range(200))


def test_it_is_the_least_distance_whatever_the_parts(monkeypatch):
    monkeypatch.setattr("cm3jax.evaluate.nearest._AT_ONCE", 7)
    asked, every = pictures(40)[20:], pictures(20)
    twice = cells(np.concatenate([every, every]))  # of equals the first
    distances = ((cells(asked)[:, None] - twice) ** 2).sum(-1)
    assert nearest_pictures(asked, twice).tolist() == distances[:, :20].argmin(1).tolist()
