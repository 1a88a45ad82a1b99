"""Whatever is killed while it writes a bank or a corpus, nothing is lost, shown or touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_nothing_is_lost_shown_or_touched_by_kills(kills):
    """SIGKILL and SIGINT at random moments of `remove`, `merge`, `build` and `prepare`."""
    command = [sys.executable, "-m", "tests.retrieval.kills", "--kills", str(kills)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{kills} kills" in done.stdout
