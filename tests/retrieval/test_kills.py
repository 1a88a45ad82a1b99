"""Whatever is killed while it writes a bank or a corpus, nothing is lost, shown or touched."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from tests.retrieval.kills import Watch

ROOT = Path(__file__).parents[2]


def test_a_bank_that_is_replaced_carelessly_is_noticed(tmp_path):
    """By what looks after each kill: else the test below could not fail."""
    (tmp_path / "data").mkdir()
    watch = Watch(tmp_path / "data")
    with pytest.raises((AssertionError, UserError)):
        kill_carelessly(watch)


def test_a_life_that_fails_by_itself_is_noticed(tmp_path):
    (tmp_path / "data").mkdir()
    watch = Watch(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "copy")
    with pytest.raises(AssertionError, match="it failed by itself"):
        kill_carelessly(watch)


def kill_carelessly(watch):
    draw = random.Random(0)
    for _ in range(20):
        watch.kill("replace carelessly", draw)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_lost_shown_or_touched_by_kills(kills):
    """SIGKILL and SIGINT at random moments of `remove`, `merge`, `build` and `prepare`."""
    command = [sys.executable, "-m", "tests.retrieval.kills", "--kills", str(kills)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1400,  # of a busy machine
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{kills} kills" in done.stdout
