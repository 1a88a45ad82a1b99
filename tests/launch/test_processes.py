"""Several real processes of `launch.train`: together, killed, stopped, changed in number."""

import signal
import time

import jax
import numpy as np
import pytest

from cm3jax.checkpoint import load_run
from cm3jax.training.metrics import read_metrics
from tests.launch import runs
from tests.launch.runs import finish, start

STEPS = 10


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return runs.options(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """A run of one process."""
    path = tmp_path_factory.mktemp("alone")
    finish(start(options, path, STEPS, devices=1))
    return path


def wait_for(run_dir, steps, processes):
    while len(read_metrics(run_dir)) < steps:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def agree(ours, theirs, steps=STEPS):
    """The same batches, losses and parameters.

    A global fingerprint is the sum over rows of hashes of content, record ids and row number, each
    process adding those of its own: it is equal only if no record was seen twice or left out.
    """
    ours_read, theirs_read = read_metrics(ours), read_metrics(theirs)[:steps]
    assert [line["step"] for line in ours_read] == list(range(1, steps + 1))
    for name in ("batch_fingerprint", "step"):
        assert [line[name] for line in ours_read] == [line[name] for line in theirs_read]
    np.testing.assert_allclose(
        [line["loss"] for line in ours_read], [line["loss"] for line in theirs_read], rtol=1e-5
    )
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5),
        load_run(ours).variables,
        load_run(theirs).variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (2, 2), (4, 1)])
def test_processes_train_as_one(options, alone, tmp_path, processes, devices):
    finish(start(options, tmp_path, STEPS, processes, devices))
    agree(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (2, 1)])
def test_a_killed_process_ends_the_run_and_others_go_on(options, alone, tmp_path, before, after):
    started = start(options, tmp_path, 1_000_000, before, 1)
    wait_for(tmp_path, 10, started)  # a save waits for the one before: step 4 is written
    started[-1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    for process in started:
        process.communicate()
        assert process.returncode != 0  # nobody goes on alone, or waits for ever
    assert time.monotonic() - begin < 150
    steps = len(read_metrics(tmp_path)) + 3

    printed = finish(start(options, tmp_path, steps, after, 1))
    resumed_from = read_metrics(tmp_path)[-1]["resumed_from"]
    assert resumed_from >= 4
    assert f"is at step {resumed_from} of {steps}" in printed
    longer = tmp_path / "alone"
    finish(start(options, longer, steps, devices=1))
    assert [line["batch_fingerprint"] for line in read_metrics(tmp_path)] == [
        line["batch_fingerprint"] for line in read_metrics(longer)
    ]
    first = slice(resumed_from, resumed_from + 10)
    np.testing.assert_allclose(
        [line["loss"] for line in read_metrics(tmp_path)[first]],
        [line["loss"] for line in read_metrics(longer)[first]],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all(options, tmp_path):
    """Saved at one step by all, however far each had come; the next life goes on from there."""
    started = start(options, tmp_path, 1_000_000, 2, 1)
    wait_for(tmp_path, 3, started)
    started[1].send_signal(signal.SIGTERM)
    printed = finish(started)
    step = load_run(tmp_path).step
    assert f"stopped on request at step {step}; it is saved." in printed
    assert read_metrics(tmp_path)[-1]["step"] == step

    finish(start(options, tmp_path, step + 1, 2, 1))
    assert read_metrics(tmp_path)[-1]["resumed_from"] == step
