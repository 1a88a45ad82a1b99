import dataclasses
import re

import pytest

from cm3jax.checkpoint import load_run
from cm3jax.config import CheckpointConfig, TrainConfig
from cm3jax.errors import UserError
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.train import train
from cm3jax.training.best import Best, best_validation, overfitting
from cm3jax.training.metrics import read_metrics
from tests import tiny


def lines(losses, valid):
    """A logged step in ten, each second one with a validation."""
    out = [{"step": 10 * (n + 1), "loss": loss} for n, loss in enumerate(losses)]
    for line, value in zip(out[1::2], valid, strict=True):
        line["loss_valid"] = value
    return out


FALLING = [5.0 - 0.3 * n for n in range(12)]


def test_the_best_is_the_first_of_the_lowest():
    assert best_validation(lines(FALLING, [4, 3, 2, 2, 2.5, 3])) == Best(60, 2.0)
    assert best_validation([]) is None
    assert best_validation([{"step": 3, "loss": 1.0, "loss_valid": None}]) is None


def test_three_worse_validations_under_a_falling_loss_are_overfitting():
    said = overfitting(lines(FALLING, [4, 3, 2, 2.1, 2.2, 2.5]))
    assert "lowest at step 60 (2.0000) and is 2.5000 now" in said


def test_other_rows_of_earlier_stages_say_nothing():
    valid = [4, 3, 2, 2.1, 2.2, 2.5]
    assert overfitting(lines(FALLING, valid), since=50)
    assert overfitting(lines(FALLING, valid), since=60) == ""  # of the rest the first is the best
    assert overfitting(lines(FALLING, valid), since=120) == ""


@pytest.mark.parametrize(
    ("losses", "valid"),
    [
        (FALLING, [4, 3, 2.5, 2, 2.1, 2.2]),  # two worse ones may be chance
        (FALLING, [4, 3.5, 3, 2.5, 2, 1.9]),
        (FALLING[::-1], [4, 3, 2, 2.1, 2.2, 2.5]),  # it diverges, which is another thing
    ],
)
def test_anything_else_is_not(losses, valid):
    assert overfitting(lines(losses, valid)) == ""


def test_a_run_that_never_validates_says_nothing():
    assert overfitting([{"step": 1, "loss": 1.0}]) == ""


@dataclasses.dataclass(frozen=True)
class Others(tiny.Rows):
    """Rows that training never sees."""

    def _row(self, index):
        return super()._row(index + 1000)


@pytest.mark.slow  # two trainings
def test_a_run_that_learns_by_heart_keeps_its_best_checkpoint_and_says_so(tmp_path, capsys):
    config = tiny.experiment(
        tmp_path / "run",
        train=TrainConfig(steps=60, log_every=2, validate_every=6, validation_batches=1),
        checkpoint=CheckpointConfig(every=25, keep=1),
    )
    rows = tiny.Rows(8, config.model.context, distinct=8)
    streams = {"train": rows, "validation": Others(8, config.model.context)}
    learner = DecoderLearner(config, tiny.VOCAB, streams)
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=30))
    train(dataclasses.replace(learner, experiment=half))
    train(learner)  # another life knows what was best
    best = best_validation(read_metrics(config.run_dir))
    assert best.step < 30
    kept = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == [best.step, 60]
    said = capsys.readouterr().out
    assert said.count("warning: overfitting") == 2  # once in each life
    assert f"lowest, {best.loss:.4f}, at step {best.step}: {tmp_path}/run/checkpoints" in said
    page = (tmp_path / "run/report.html").read_text()
    assert re.search(rf"at step {best.step}, kept as checkpoints/{best.step}. Overfitting", page)

    named = load_run(tmp_path / f"run/checkpoints/{best.step}")
    assert (named.step, load_run(tmp_path / "run").step) == (best.step, 60)
    with pytest.raises(UserError, match=f"no checkpoint of step 59; it has {best.step}, 60"):
        load_run(tmp_path / "run/checkpoints/59")


@pytest.mark.parametrize("kept", [{1}, {4}, set()])
def test_a_log_that_lost_its_training_losses_says_nothing(kept):
    lines = [{"step": step, "loss_valid": float(step)} for step in range(1, 6)]
    assert (
        overfitting([line | {"loss": 1.0} if line["step"] in kept else line for line in lines])
        == ""
    )
