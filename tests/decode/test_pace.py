import numpy as np

from cm3jax.config.decoding import AUTO
from cm3jax.decode.pace import WINDOWS, Pace, pace_of

CHEAP = {1: 1.0, 2: 1.15, 4: 1.2, 8: 1.3, 16: 1.4}
DEAR = {1: 1.0, 2: 1.9, 4: 3.5, 8: 7.0, 16: 14.0}


def chunk(emitted, window):
    """Passes of one sample over a window, which emit `emitted` ids in turn."""
    return np.asarray(emitted)[:, None], window


def test_the_window_is_what_pays():
    assert Pace(DEAR).window == 1
    pace = Pace(CHEAP)
    assert pace.window >= 4
    for _ in range(40):
        pace.saw(*chunk([1] * 16, pace.window))
    assert pace.window == 1, "no guess is right"


def test_guesses_are_tried_again_after_chunks_without_any():
    pace = Pace(CHEAP)
    for _ in range(40):
        pace.saw(*chunk([1] * 16, pace.window))
        if pace.window == 1:
            break
    assert pace.window == 1
    tries = 0
    for _ in range(1_000):
        tries += pace.window > 1
        pace.saw(*chunk([1] * 16, pace.window))
    assert 10 <= tries <= 60, "each costs time, so there are few"


def test_only_where_no_guess_pays_is_none_ever_made():
    assert not Pace(DEAR).ever_guesses
    assert not Pace({1: 1.0}).ever_guesses
    assert Pace({8: 1.0}).ever_guesses
    pace = Pace(CHEAP)
    for _ in range(40):
        pace.saw(*chunk([1] * 16, pace.window))
    assert (pace.window, pace.ever_guesses) == (1, True), "they are tried again"


def test_a_gain_that_timing_may_have_made_up_is_left():
    ids = sum(0.7**place for place in range(16))
    assert Pace({1: 1.0, 16: ids / 1.15}).window == 1
    assert Pace({1: 1.0, 16: ids / 1.25}).window == 16


def test_right_guesses_widen_the_window():
    pace = Pace(CHEAP)
    for _ in range(20):
        pace.saw(*chunk([pace.window] * 16, pace.window))
    assert pace.window == 16


def test_windows_are_timed_once_for_a_program():
    tried = []

    def run(window):
        tried.append(window)
        return 1.0 if tried.count(window) == 3 else 9.0

    def dear(window):
        return DEAR[window]

    assert pace_of(8, "one", run).window == 8
    assert pace_of(0, "one", run).window == 1
    assert not tried
    pace = pace_of(AUTO, "one", run)
    assert set(tried) == set(WINDOWS)
    assert pace.window == 16, "the fastest run of each counts, and all take as long"
    count = len(tried)
    assert pace_of(AUTO, "one", run) is pace
    assert len(tried) == count
    assert pace_of(AUTO, "another", dear).window == 1
    assert pace_of(AUTO, "a third", run, shared=True).window == 1
    assert pace_of(8, "a third", run, shared=True).window == 8
    assert len(tried) == count
