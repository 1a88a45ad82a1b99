"""The loop: learning, starting, stopping. Killing and resuming is in `launch/test_train.py`."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cm3jax import partition
from cm3jax.checkpoint import load_run
from cm3jax.config import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.report.run_page import is_reported
from cm3jax.sequence.vocab import Vocab
from cm3jax.train import make_train_step, train
from cm3jax.training.distributed import Preemption
from cm3jax.training.loss import Mean
from cm3jax.training.metrics import read_metrics
from cm3jax.training.state import plan_layout
from tests import tiny
from tests.tiny import VOCAB, experiment, learner


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The experiment and final state of a run of 8 steps."""
    config = experiment(tmp_path_factory.mktemp("finished"))
    return config, train(learner(config))


def test_logs_what_tools_read(finished):
    config, _ = finished
    lines = read_metrics(config.workdir)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["loss"] == pytest.approx(np.log(VOCAB.size), rel=0.05)
    assert lines[-1]["resumed_from"] == 0
    assert lines[-1]["tokens_per_second"] > 0
    assert lines[-1]["flops"] == 8 * learner(config).work.flops
    assert [line["step"] for line in lines if "loss_valid_text" in line] == [4, 8]
    assert len({line["batch_fingerprint"] for line in lines}) == 8
    assert load_run(config.workdir).experiment == config


def test_a_finished_run_is_not_trained_again(finished, capsys):
    """But a report that it was killed before is written; once."""
    config, state = finished
    report = Path(config.workdir) / "report.html"
    assert is_reported(config.workdir, 8)
    report.unlink()
    again = train(learner(config))
    assert "finished already, nothing to train" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert is_reported(config.workdir, 8)
    written = report.stat().st_mtime_ns
    train(learner(config))
    assert report.stat().st_mtime_ns == written


@pytest.mark.slow
def test_memorises_its_rows(tmp_path):
    config = experiment(
        tmp_path,
        train=TrainConfig(steps=200, log_every=100, validate_every=0),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0),
    )
    train(learner(config, distinct=8))
    last = read_metrics(tmp_path)[-1]
    assert max(last["loss"], last["loss_text"], last["loss_image"]) < 0.05


def test_starts_from_parameters_of_another_run(finished, tmp_path, capsys):
    config, _ = finished
    short = dataclasses.replace(config.train, steps=1)
    heir = dataclasses.replace(config, workdir=str(tmp_path), init_from=config.workdir, train=short)
    state = train(learner(heir))
    assert "starting from the parameters of" in capsys.readouterr().out
    assert int(state.step) == 1
    assert read_metrics(tmp_path)[0]["loss"] != read_metrics(config.workdir)[0]["loss"]
    other = dataclasses.replace(heir, init_from=str(tmp_path / "nothing"))
    train(learner(other))  # the run directory has a checkpoint, which goes first
    assert "finished already" in capsys.readouterr().out


def test_sigterm_saves_and_returns(tmp_path, capsys, monkeypatch):
    row = tiny.Rows._row

    def terminating_row(self, index):
        if index == 20:  # in the third batch
            os.kill(os.getpid(), signal.SIGTERM)
        return row(self, index)

    monkeypatch.setattr(tiny.Rows, "_row", terminating_row)
    assert int(train(learner(experiment(tmp_path))).step) == 3
    assert "stopped on request at step 3" in capsys.readouterr().out
    assert load_run(tmp_path).step == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_after_the_last_step_is_told(tmp_path):
    """Whoever goes on after a training must know of it."""

    def terminated(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return ()

    short, preemption = TrainConfig(steps=2, validate_every=2), Preemption()
    config = experiment(tmp_path, train=short)
    assert int(train(learner(config), terminated, preemption=preemption).step) == 2
    assert is_reported(tmp_path, 2)
    assert preemption.noticed


def test_a_loss_of_nan_stops_the_run(tmp_path):
    config = experiment(tmp_path, optim=OptimConfig(peak_lr=1e30, warmup_steps=1))
    with pytest.raises(UserError, match=r"is (nan|inf) at step \d \(batch \w{16}, kept in"):
        train(learner(config))
    assert not any((tmp_path / "checkpoints").iterdir())


def test_the_batch_of_a_nan_loss_is_kept(tmp_path, monkeypatch):
    """And the parameters before it stand in the checkpoints, fit to go on from."""
    batches = tiny.Rows.batches

    def poisoned(self, position):
        for number, batch in enumerate(batches(self, position), start=1):
            if number == 6:
                batch.data.weights[3, 5] = np.nan
            yield batch

    monkeypatch.setattr(tiny.Rows, "batches", poisoned)
    config = experiment(tmp_path)
    path = tmp_path / "bad-batch-6-process-0.npz"
    with pytest.raises(UserError, match=f"loss is nan at step 6 .* kept in {path}"):
        train(learner(config))
    kept = np.load(path)
    assert set(kept) == {"tokens", "targets", "weights", "segments", "positions"}
    assert np.argwhere(np.isnan(kept["weights"])).tolist() == [[3, 5]]
    run = load_run(tmp_path)
    assert run.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_nan_parameters_are_not_saved(tmp_path):
    """The loss and the gradient of the step that spoils them may be fine."""
    config = experiment(
        tmp_path,
        optim=OptimConfig(peak_lr=1e38, warmup_steps=1, clip_norm=1e30),
        checkpoint=CheckpointConfig(every=1),
    )
    with pytest.raises(UserError, match="parameter_norm is inf at step 1"):
        train(learner(config))
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow  # it waits for a step that hangs
def test_the_watchdog_shows_where_a_step_hangs(tmp_path, monkeypatch, capfd):
    row = tiny.Rows._row

    def sleeping_row(self, index):
        if index == 20:
            time.sleep(1.5)
        return row(self, index)

    monkeypatch.setattr(tiny.Rows, "_row", sleeping_row)
    fields = {"steps": 4, "validate_every": 0, "log_every": 4}
    train(learner(experiment(tmp_path, train=TrainConfig(watchdog_seconds=1, **fields))))
    printed = capfd.readouterr().err
    assert "no step has ended for" in printed
    assert "MainThread:\n" in printed
    assert "in sleeping_row" in printed
    assert load_run(tmp_path).step == 4  # the run went on
    time.sleep(1.2)
    assert not capfd.readouterr().err  # and the dog sleeps


@pytest.mark.parametrize(
    ("mesh", "parts"), [((1, 1, 1), 4), pytest.param((2, 2, 2), 2, marks=pytest.mark.slow)]
)
def test_accumulated_parts_make_the_same_update(mesh, parts):
    """Also where rows have very different weights, so that a mean of means would be wrong."""
    batch = next(tiny.Rows(16, 16).batches(Position())).data
    weights = np.random.default_rng(0).random(batch.weights.shape).astype(np.float32)
    weights[::3] *= 0.01
    weights[5] = 0
    batch = dataclasses.replace(batch, weights=weights)
    results = []
    for count in (1, parts):
        optim = OptimConfig(peak_lr=1e-3, warmup_steps=1, eps=1e-4, accumulate=count)
        made = learner(experiment("", optim=optim))
        devices = partition.make_mesh(MeshConfig(*mesh))
        with jax.set_mesh(devices):
            layout = plan_layout(made, devices)
            shared = jax.device_put(batch, partition.batch_sharding(devices))
            state = layout.init(jax.random.key(0))
            results.append(make_train_step(made, layout)(state, shared))
    (state, metrics), (other, more) = results
    for name in metrics:
        value = Mean(*metrics[name]).compute()
        assert Mean(*more[name]).compute() == pytest.approx(value, rel=1e-6)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6),
        (other.params, other.opt_state),
        (state.params, state.opt_state),
    )


def test_parts_that_a_device_cannot_share_are_refused(tmp_path):
    config = experiment(tmp_path, optim=OptimConfig(accumulate=3))
    with pytest.raises(
        UserError, match=r"1 equal shares of 3 equal parts; make it a multiple of 3"
    ):
        train(learner(config))


def test_another_vocabulary_is_refused(finished, tmp_path):
    config, _ = finished
    other = Vocab(VOCAB.config, text_fingerprint="other")
    with pytest.raises(UserError, match=f"{config.workdir}.* was made with the text tokenizer"):
        train(learner(config, vocab=other))
    heir = dataclasses.replace(config, workdir=str(tmp_path), init_from=config.workdir)
    with pytest.raises(UserError, match=f"{config.workdir} was made with the text tokenizer"):
        train(learner(heir, vocab=other))


def test_a_batch_that_the_mesh_cannot_share_is_refused(tmp_path):
    config = experiment(tmp_path, mesh=MeshConfig(data=3))
    with pytest.raises(UserError, match=r"data\.batch=8 cannot be cut into 3"):
        train(learner(config))


@pytest.mark.slow  # `learners/test_decoder.py` compares one step on them
def test_losses_agree_on_all_meshes(finished, tmp_path):
    config, _ = finished
    cut = dataclasses.replace(config, workdir=str(tmp_path), mesh=MeshConfig(2, 2, 2))
    train(learner(cut))
    ours, theirs = read_metrics(tmp_path), read_metrics(config.workdir)
    for name in ("loss", "loss_text", "gradient_norm"):
        np.testing.assert_allclose(
            [line[name] for line in ours[:4]], [line[name] for line in theirs[:4]], rtol=1e-5
        )
    marks = [[line["batch_fingerprint"] for line in lines] for lines in (ours, theirs)]
    assert marks[0] == marks[1]


@pytest.mark.slow
def test_twenty_steps_are_the_same_on_five_meshes(tmp_path):
    model = dataclasses.replace(experiment("").model, heads=8, head_width=4)
    runs = {}
    for sizes in [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]:
        runs[sizes] = tmp_path / "x".join(map(str, sizes))
        train(
            learner(
                experiment(
                    runs[sizes],
                    model=model,
                    mesh=MeshConfig(*sizes),
                    optim=OptimConfig(peak_lr=1e-3, warmup_steps=5),
                    train=TrainConfig(steps=20, log_every=1, validate_every=0),
                )
            )
        )
    alone = read_metrics(runs.pop((1, 1, 1)))
    assert len(alone) == 20
    for sizes, run in runs.items():
        lines = read_metrics(run)
        for name in ("loss", "loss_text", "loss_image"):
            np.testing.assert_allclose(
                [line[name] for line in lines],
                [line[name] for line in alone],
                rtol=1e-5,
                err_msg=f"{name} on {sizes}",
            )
        marks = [[line["batch_fingerprint"] for line in part] for part in (lines, alone)]
        assert marks[0] == marks[1]
