"""Trackers are told what `metrics.jsonl` is told."""

import contextlib
import dataclasses
import json
import logging
import sqlite3

import pytest

from cm3jax.config import TrainConfig
from cm3jax.errors import UserError
from cm3jax.train import train
from cm3jax.training import tracker
from cm3jax.training.metrics import read_metrics
from cm3jax.training.tracker import Tracker, require_tracker
from tests.tiny import experiment, learner

STEPS = TrainConfig(steps=2, log_every=1, validate_every=0, tracker="trackio")


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Where Trackio keeps runs."""
    from trackio import sqlite_storage, utils

    folder = tmp_path / "trackio"
    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    return folder


def logged(folder):
    """(run, step, metrics) as Trackio has them."""
    with contextlib.closing(sqlite3.connect(folder / "cm3jax.db")) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step")
        return [(name, step, json.loads(values)) for name, step, values in rows]


@pytest.mark.slow
def test_two_lives_are_one_run_in_the_tracker(tmp_path, database):
    config = experiment(tmp_path / "mine", train=STEPS)
    train(learner(config))
    again = dataclasses.replace(config, train=dataclasses.replace(STEPS, steps=4))
    train(learner(again))
    found, lines = logged(database), read_metrics(tmp_path / "mine")
    name = json.loads((tmp_path / "mine" / "tracker.json").read_text())["name"]
    assert name.startswith("mine-")
    assert [(run, step) for run, step, _ in found] == [(name, step) for step in range(1, 5)]
    for (_, _, values), line in zip(found, lines, strict=True):
        numbers = {k: v for k, v in line.items() if isinstance(v, float | int) and k != "step"}
        assert values == numbers


def test_a_tracker_that_fails_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_SERVER_URL", "nowhere")
    with caplog.at_level(logging.WARNING, "cm3jax"):
        train(learner(experiment(tmp_path / "run", train=STEPS)))
    assert "the tracker fails and is told no more" in caplog.text
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]


def test_neither_a_broken_package_nor_a_damaged_name_ends_a_run(tmp_path, monkeypatch, caplog):
    def fails(name):
        raise ImportError("libsomething.so is missing")

    (tmp_path / "tracker.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "cm3jax"):
        Tracker("trackio", tmp_path, {}).write(1, {"loss": 1.0})
        monkeypatch.setattr(tracker.importlib, "import_module", fails)
        Tracker("trackio", tmp_path, {}).write(1, {"loss": 1.0})
    assert caplog.text.count("the tracker fails and is told no more") == 2
    assert "libsomething.so is missing" in caplog.text


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made():
    require_tracker("")
    with pytest.raises(UserError, match=r"train\.tracker=no_such needs the package no_such"):
        require_tracker("no_such")
