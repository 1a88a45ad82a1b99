"""`kill -9` again and again; `python -m tests.launch.kills` does it 30 times."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import kills

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_out_the_same(tmp_path):
    outcome = kills.run(tmp_path, kills=6)
    assert sum(life.begun > 0 for life in outcome.lives) >= 3
    assert {life.devices for life in outcome.lives} >= {1, 2}
    assert outcome.bitwise > kills.REPLAYED
    assert outcome.worst > 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_sample_is_lost_or_half_there_by_kills():
    """SIGKILL and SIGINT at random moments of `launch.generate`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.generate_kills", "--kills", "20"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1400,  # of a busy machine
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ended = {what: int(n) for n, what in re.findall(r"(\d+) (killed|stopped)", done.stdout)}
    assert sum(ended.values()) >= 3, done.stdout
