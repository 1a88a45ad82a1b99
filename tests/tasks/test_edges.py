import numpy as np

from cm3jax.tasks.edges import canny, scribble


def disc(size=64, radius=20):
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    inside = x**2 + y**2 < radius**2
    return np.where(inside[..., None], np.uint8(200), np.uint8(30)).repeat(3, -1), np.hypot(x, y)


def test_canny_draws_the_outline_of_a_disc_and_nothing_else():
    picture, distance = disc()
    lines = canny(picture)[..., 0] > 0
    assert lines.any()
    assert (abs(distance[lines] - 20) < 2).all()
    angles = np.arctan2(*(np.argwhere(lines) - 31.5).T)
    assert len(np.unique(np.round(angles, 1))) > 50  # all round
    assert lines.sum() < 1.3 * 2 * np.pi * 20  # one pixel wide


def test_a_plain_picture_has_no_edges_and_faint_steps_none_of_their_own():
    assert not canny(np.full((16, 16, 3), 90, np.uint8)).any()
    faint = np.full((32, 32, 3), 100, np.uint8)
    faint[:, 16:] = 105
    assert not canny(faint).any()


def test_a_weak_line_is_kept_where_it_continues_a_strong_one():
    def beside(first):
        """A field of 100 beside one that fades from `first` to 118."""
        picture = np.full((40, 40, 3), 100, np.uint8)
        picture[:, 20:] = np.linspace(first, 118, 40).astype(np.uint8)[:, None, None]
        return canny(picture)[..., 0] > 0

    assert beside(200)[35, 18:22].any()
    assert not beside(125).any()  # nowhere strong enough to begin a line


def test_scribbles_are_thicker_than_edges_and_keep_the_size():
    picture, distance = disc(65)
    strokes = scribble(picture)
    assert strokes.shape == picture.shape
    assert (strokes > 0).sum() > 2 * (canny(picture) > 0).sum()
    assert (abs(distance[strokes[..., 0] > 0] - 20) < 6).all()
