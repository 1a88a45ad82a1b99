"""`python -m launch.train`: the real command on a small real corpus, killed and resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cm3jax.checkpoint import load_run
from cm3jax.errors import UserError
from cm3jax.metrics import read
from launch import train
from tests.data import corpora

CLOCKS = {"seconds", "tokens_per_second", "resumed_from"}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Command-line options of a tiny decoder; its learning rate does not depend on the end."""
    path = tmp_path_factory.mktemp("corpus")
    bank = corpora.write_bank(path)
    for split in ("train", "validation"):
        corpora.write_corpus(path, bank, split=split)
    fields = {
        "data": {"corpus": f"{path}/corpus", "bank": f"{path}/bank", "batch": 8},
        "vocab": {"image_codes": 64, "text_pieces": 50, "grid": 2},
        "vqgan": {"image_size": 16, "codes": 64},
        "model": {"layers": 2, "width": 32, "heads": 2, "head_width": 16, "ffn": 64, "context": 64},
        "optim": {"warmup_steps": 5, "end_lr_ratio": 1.0},
        "train": {"log_every": 1, "validate_every": 20, "validation_batches": 2},
        "checkpoint": {"every": 4},
        "mesh": {"data": 1},
    }
    return [
        word
        for section, values in fields.items()
        for name, value in values.items()
        for word in (f"--{section}.{name.replace('_', '-')}", str(value))
    ]


def arguments(options, workdir, steps):
    return ["quickstart", *options, "--workdir", str(workdir), "--train.steps", str(steps)]


def start(options, workdir, steps):
    command = [sys.executable, "-m", "launch.train", *arguments(options, workdir, steps)]
    return subprocess.Popen(command, cwd=Path(train.__file__).parents[1], stdout=subprocess.PIPE)


def curve(run_dir):
    """All that was logged but times."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read(run_dir)]


def test_a_killed_run_goes_on_as_if_never_interrupted(options, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with start(options, broken, 1_000_000) as victim:
        while len(read(broken)) < 25:
            assert victim.poll() is None
            time.sleep(0.01)
        victim.kill()
    assert victim.returncode == -signal.SIGKILL
    steps = max(40, len(read(broken)) + 5)

    with start(options, broken, steps) as survivor:
        printed = survivor.communicate()[0].decode()
    assert survivor.returncode == 0
    resumed_from = read(broken)[-1]["resumed_from"]
    assert resumed_from > 0
    assert f"resuming: {broken} is at step {resumed_from} of {steps}." in printed

    train.run(arguments(options, whole, steps))
    assert [line["step"] for line in curve(broken)] == list(range(1, steps + 1))
    assert curve(broken) == curve(whole)
    ours, theirs = load_run(broken), load_run(whole)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert theirs.step == ours.step == steps


def test_a_missing_corpus_is_one_sentence(options, tmp_path):
    absent = [*arguments(options, tmp_path / "run", 1), "--data.corpus", str(tmp_path / "absent")]
    with pytest.raises(UserError, match="absent"):
        train.run(absent)
    assert not (tmp_path / "run").exists()


def test_help_names_every_learner(capsys):
    with pytest.raises(SystemExit) as stop:
        train.run(["--help"])
    assert stop.value.code == 0
    assert "quickstart" in capsys.readouterr().out
