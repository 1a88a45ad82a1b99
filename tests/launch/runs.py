"""Real runs of `python -m launch.train` on a small corpus, in one process or several."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from cm3jax.training.metrics import read_metrics
from tests.data import corpora

ROOT = Path(__file__).parents[2]
CLOCKS = {"seconds", "tokens_per_second", "mfu", "data_wait", "resumed_from"}


def options(path: Path) -> list[str]:
    """Command-line options of a tiny decoder on a mixture of two corpora, which lie below `path`.

    Its learning rate does not depend on the end.
    """
    homes = {path / "large": 300, path / "small": 60}
    for home, records in homes.items():
        bank = corpora.write_bank(home)
        for split in ("train", "validation"):
            corpora.write_corpus(home, bank, records, split=split)
    mixture = [
        str(word) for home, weight in zip(homes, (3, 1), strict=True) for word in (home, weight)
    ]
    fields: dict[str, dict[str, Any]] = {
        "data": {"batch": 8},
        "vocab": {"image_codes": 64, "text_pieces": 50, "grid": 2},
        "vqgan": {"image_size": 16, "codes": 64},
        "model": {"layers": 2, "width": 32, "heads": 2, "head_width": 16, "ffn": 64, "context": 64},
        "optim": {
            "method": "adamw",
            "peak_lr": 1e-3,
            "warmup_steps": 5,
            "end_lr_ratio": 1.0,
        },
        "train": {"log_every": 1, "validate_every": 20, "validation_batches": 2},
        "checkpoint": {"every": 4},
    }
    return ["--data.mixture", *mixture] + [
        word
        for section, values in fields.items()
        for name, value in values.items()
        for word in (f"--{section}.{name.replace('_', '-')}", str(value))
    ]


def arguments(options: list[str], workdir: Path, steps: int) -> list[str]:
    return ["quickstart", *options, "--workdir", str(workdir), "--train.steps", str(steps)]


def start(
    options: list[str], workdir: Path, steps: int, processes: int = 1, devices: int = 8
) -> list[subprocess.Popen]:
    """A run of `processes` processes with `devices` devices each (8: as the tests' own process)."""
    command = [sys.executable, "-m", "launch.train", *arguments(options, workdir, steps)]
    address = f"localhost:{_free_port()}"
    started = []
    for index in range(processes):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen]) -> str:
    """Wait for the run to end well; what its first process printed."""
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(printed)
    return printed[0]


def curve(run_dir: Path) -> list[dict]:
    """All that was logged but times."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_metrics(run_dir)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
