"""`kill -9` again and again; `python -m tests.launch.kills` does it 30 times."""

import pytest

from tests.launch import kills


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_out_the_same(tmp_path):
    outcome = kills.run(tmp_path, kills=6)
    assert sum(life.begun > 0 for life in outcome.lives) >= 3
    assert {life.devices for life in outcome.lives} >= {1, 2}
    assert outcome.bitwise > kills.REPLAYED
    assert outcome.worst > 0
