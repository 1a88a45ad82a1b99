"""A chain of work, stage by stage: what is finished is reused, and what comes next is said."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from etils import epath

from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import read_as
from cm3jax.io.files import write_json
from cm3jax.report.run_page import is_reported
from launch.train import train_experiment


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a chain."""

    name: str
    budget: int
    """Seconds that it takes, by estimate."""
    path: str
    """What it makes."""
    done: Callable[[], bool]
    """Whether that is complete."""
    run: Callable[[], bool | None]
    """Makes it, or continues to; returns whether it was told to stop meanwhile."""


def training(member: Experiment, seconds: int, with_changes: bool = False) -> Stage:
    """The stage that trains a member of a chain; `with_changes` is as `train_experiment` takes
    it."""
    run, steps = epath.Path(member.run_dir), member.train.steps

    def done() -> bool:
        if member.learner == "text_tokenizer":
            return (run / "text.model").exists()
        # The report comes after the last checkpoint; a run that was killed between owes it.
        return (run / "checkpoints" / str(steps)).exists() and is_reported(run, steps)

    return Stage(
        f"train {member.learner}",
        seconds,
        member.run_dir,
        done,
        lambda: train_experiment(member, with_changes),
    )


def run_stages(stages: Sequence[Stage], timings: epath.PathLike) -> None:
    """Run what is not done yet, in order; seconds go to the JSON file `timings`.

    After each it says what comes next and how long the rest takes. Raises `UserError` when a stage
    returns unfinished, as a trainer does that was told to stop, and when a stage was told to stop
    after its last step.
    """
    timings = epath.Path(timings)
    seconds = read_as(dict[str, float], timings, "the timings") if timings.exists() else {}
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if stage.done():
            print(f"{title}: reusing {stage.path}", flush=True)
            continue
        print(f"{title}: about {in_words(stage.budget)}, into {stage.path}", flush=True)
        start = time.perf_counter()
        stopped = stage.run()
        if not stage.done():
            raise UserError(f"{stage.name} stopped before its end; give the same command again.")
        seconds[stage.name] = round(time.perf_counter() - start, 1)
        write_json(timings, seconds)
        print(f"{title}: done in {in_words(seconds[stage.name])}{_rest(stages[number:])}")
        if stopped:
            raise UserError(f"stopped on request after {stage.name}; give the same command again.")


def _rest(stages: Sequence[Stage]) -> str:
    """What comes next, and how long that and all the rest takes; nothing at the end."""
    if not stages:
        return ""
    left = in_words(sum(stage.budget for stage in stages))
    return f"; next: {stages[0].name}; about {left} left in all"


def in_words(seconds: float) -> str:
    """A time in words: `40 s`, `12 minutes`, `3.5 hours`."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
