import pytest

from experiments.claims.masking import _whole


def test_a_random_span_is_hardly_ever_a_whole_caption():
    # Both ends must fall next to the caption's: the first on one of 1,035 places, the other on one
    # of the ten behind the caption from which it overlaps the image less.
    spans = _whole(9, 32, 0.0, 0)
    assert spans.mean() < 1e-3
    # Of half of the masks, which are whole segments, every second is the caption.
    assert _whole(9, 32, 0.5, 0).mean() == pytest.approx(0.25, abs=0.03)
    assert _whole(9, 32, 1.0, 0).mean() == pytest.approx(0.5, abs=0.03)
