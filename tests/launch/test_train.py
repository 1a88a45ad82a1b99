"""`python -m launch.train`: the real command on a small real corpus, killed and resumed."""

import os
import signal
import time

import jax
import numpy as np
import pytest

from cm3jax.checkpoint import load_run
from cm3jax.errors import UserError
from cm3jax.training.metrics import read_metrics
from launch import train
from tests.launch import runs
from tests.launch.runs import arguments, curve, finish, start


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return [*runs.options(tmp_path_factory.mktemp("corpus")), "--mesh.data", "1"]


@pytest.mark.slow  # processes start; `training/test_ema.py` stops a run in this one
def test_a_killed_run_goes_on_as_if_never_interrupted(options, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    (victim,) = start(options, broken, 1_000_000)
    with victim:
        while len(read_metrics(broken)) < 9:
            assert victim.poll() is None
            time.sleep(0.01)
        victim.kill()
    assert victim.returncode == -signal.SIGKILL
    steps = max(20, len(read_metrics(broken)) + 5)

    printed = finish(start(options, broken, steps))
    resumed_from = read_metrics(broken)[-1]["resumed_from"]
    assert resumed_from > 0
    assert f"resuming: {broken} is at step {resumed_from} of {steps}." in printed

    train.run(arguments(options, whole, steps))
    assert [line["step"] for line in curve(broken)] == list(range(1, steps + 1))
    assert curve(broken) == curve(whole)
    ours, theirs = load_run(broken), load_run(whole)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert theirs.step == ours.step == steps


def test_a_missing_corpus_raises_user_error(options, tmp_path):
    corpus = ["--data.mixture", str(tmp_path / "absent"), "1"]
    absent = [*arguments(options, tmp_path / "run", 1), *corpus]
    with pytest.raises(UserError, match="absent"):
        train.run(absent)
    assert not (tmp_path / "run").exists()


def test_help_names_every_learner(capsys):
    with pytest.raises(SystemExit) as stop:
        train.run(["--help"])
    assert stop.value.code == 0
    assert "quickstart" in capsys.readouterr().out


def test_an_experiment_without_a_corpus_says_which_option_names_it(tmp_path):
    said = r"cm3leon_350m names no data\.corpus; .*give the same --data\.corpus and --data\.bank\."
    with pytest.raises(UserError, match=said):
        train.run(["cm3leon_350m", "--workdir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_place_where_no_checkpoint_can_be_written_is_refused_before_training(
    tmp_path, monkeypatch
):
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(odd)
    monkeypatch.chdir(odd)
    with pytest.raises(UserError, match="is not UTF-8, and checkpoints cannot be written there"):
        train.run(["miniature/vqgan", "--workdir", "v"])
    assert not os.listdir(".")
