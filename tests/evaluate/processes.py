"""Real processes of `python -m launch.evaluate`, to be killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
Marks = dict[Path, tuple[int, int]]


def start(words: Sequence[str]) -> subprocess.Popen:
    """A process with one device."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.evaluate", *words],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(words: Sequence[str], when: Callable[[], bool], delay: float = 0.0) -> None:
    """Start a process, and end it with SIGKILL so many seconds after it came that far."""
    victim = start(words)
    while not when():
        assert victim.poll() is None, victim.communicate()[0]
        time.sleep(0.002)
    time.sleep(delay)
    victim.kill()
    printed = victim.communicate()[0]
    assert victim.returncode == -9, printed


def marks(files: Sequence[Path]) -> Marks:
    """What tells whether a file is written again, with the same content too."""
    stats = {path: path.stat() for path in files}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}
