"""`metrics.jsonl` and what people see."""

import json
import math
import subprocess
import sys
import time

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cm3jax
from cm3jax.training import hardware, metrics
from cm3jax.training.metrics import (
    MetricsLog,
    Progress,
    StepCost,
    read_metrics,
    record_life,
    revision,
    utilisation,
)


def test_each_step_is_logged_once_after_a_resume(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5 * step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the run was killed here
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    MetricsLog(tmp_path, 2).write({"step": 3, "loss": 9.0})
    assert read_metrics(tmp_path)[1:] == [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


BAD = [b'{"step": 2, "lo\xff": 1}\n', b"[1]\n", b'{"step": "two"}\n', b"\0\0\0\n"]


def test_damaged_lines_are_set_aside(tmp_path, caplog):
    """And hide no other step: not those logged before, not those of the next lives."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"".join(BAD) + b'{"step": 3}\n')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    MetricsLog(tmp_path, 3).write({"step": 4})
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [1, 3, 4]
    assert "had 4 damaged lines, which are now in damaged-metrics.jsonl" in caplog.text
    assert set((tmp_path / "damaged-metrics.jsonl").read_bytes().splitlines(True)) == set(BAD)
    MetricsLog(tmp_path, 4)
    assert len((tmp_path / "damaged-metrics.jsonl").read_bytes().splitlines()) == 4


def test_a_torn_life_stops_no_later_one(tmp_path, caplog):
    record_life(tmp_path, 0)
    path = tmp_path / "lives.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert metrics.lives(tmp_path) == []
    record_life(tmp_path, 4)
    record_life(tmp_path, 8)
    assert [life["step"] for life in metrics.lives(tmp_path)] == [4, 8]
    assert "lives.jsonl had 1 damaged lines" in caplog.text
    assert (tmp_path / "damaged-lives.jsonl").read_text().startswith('{"step": 0, ')


def test_values_that_are_not_finite_are_left_out_of_curves():
    values = (1, None, "x", [2], math.nan, math.inf, 10**400, 0.5)
    lines = [{"step": 1, "a": value} for value in values]
    assert metrics.curve(lines, "a") == [(1, 1.0), (1, 0.5)]


def test_a_run_from_scratch_begins_a_new_log(tmp_path):
    MetricsLog(tmp_path, 0).write({"step": 1})
    MetricsLog(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_numbers_that_are_not_finite_stay_json(tmp_path):
    MetricsLog(tmp_path, 0).write({"step": 1, "loss_text": math.nan})
    assert read_metrics(tmp_path) == [{"step": 1, "loss_text": None}]


def test_progress_without_a_terminal_is_plain_lines(capsys):
    values = {"loss": 1.25, "loss_text": math.nan, "tokens_per_second": 12345.6, "flops": 1.0}
    with Progress("tiny", 20) as progress:
        progress.say("[a line] as it is")
        progress.show(10, values, 90.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "[a line] as it is",
        "tiny 10/20  loss 1.2500  12,346 tokens/s  0:01:30 left",
    ]


def test_utilisation_by_hand(monkeypatch):
    # 8 devices of 100 FLOP/s; 3 steps of 200 FLOP and 10 tokens in half a second each.
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 100.0)
    values = utilisation(StepCost(tokens=10, flops=200.0), 3, 0.5)
    assert values["tokens_per_second"] == 20
    assert values["mfu"] == 400 / 800
    assert values["flops"] == 600
    assert values["a100_hours"] == 600 / (312e12 * 3600)
    assert utilisation(StepCost(10, 200.0), 1, None)["mfu"] is None


def test_a_processor_has_no_known_peak():
    assert utilisation(StepCost(10, 200.0), 3, 0.5)["mfu"] is None


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU7x", 1153.5e12),  # a device is a core, half a chip
        ("cpu", None),
    ],
)
def test_peaks_of_devices(kind, peak):
    assert hardware.peak_flops(kind) == peak


def curve(run_dir, name):
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path, monkeypatch):
    for last, loss in ((0, 1.0), (2, 8.0)):
        # Files of lives are told apart by their seconds; a life takes more than one.
        monkeypatch.setattr(time, "time", lambda last=last: 1e9 + last)
        log = MetricsLog(tmp_path, last)
        for step in range(last + 1, last + 4):
            log.write({"step": step, "loss": loss, "mfu": None, "batch_fingerprint": "ab"})
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 8.0), (4, 8.0), (5, 8.0)]


def test_a_log_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    MetricsLog(tmp_path, 0).write({"step": 1})
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert not (tmp_path / "tensorboard").exists()


def test_every_life_of_a_run_says_its_code(tmp_path, monkeypatch):
    record_life(tmp_path, 0)
    monkeypatch.setenv("CM3JAX_REVISION", "abc")
    record_life(tmp_path, 40)
    first, second = map(json.loads, (tmp_path / "lives.jsonl").read_text().splitlines())
    assert (first["step"], first["devices"], first["version"]) == (0, 8, cm3jax.__version__)
    assert (second["step"], second["revision"]) == (40, "abc")


def test_a_checkout_knows_its_commit(tmp_path, monkeypatch):
    monkeypatch.delenv("CM3JAX_REVISION", raising=False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    package = tmp_path / "__init__.py"
    package.write_text("")
    monkeypatch.setattr(cm3jax, "__file__", str(package))
    assert revision() is None
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert revision() == head.stdout.strip()
    package.write_text("changed = True")
    assert revision() == head.stdout.strip() + "+"


def test_a_log_in_a_bucket_is_written_whole(monkeypatch):
    import fsspec

    # A stand-in for the cloud: the same path class and file system calls, kept in memory.
    from etils.epath import backend

    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: memory)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    log = MetricsLog(epath.Path("gs://mine/run"), 0)
    for step in (1, 2):
        log.write({"step": step})
    assert read_metrics("gs://mine/run") == [{"step": 1}, {"step": 2}]
    MetricsLog("gs://mine/run", 1).write({"step": 2, "again": True})
    assert read_metrics("gs://mine/run")[1:] == [{"step": 2, "again": True}]


def test_a_step_that_no_run_has_is_damage(tmp_path):
    steps = (3, -1, 10**400, True, 1.0)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {json.dumps(s)}}}\n' for s in steps)
    )
    assert read_metrics(tmp_path) == [{"step": 3}]
