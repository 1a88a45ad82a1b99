"""The best validation of a run so far, and whether the run overfits since."""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from cm3jax.training import distributed
from cm3jax.training.metrics import curve, read_metrics

_PATIENCE = 3
"""Validations in a row that are worse than the best before a run is said to overfit."""


@dataclasses.dataclass(frozen=True)
class Best:
    """A validation."""

    step: int
    loss: float
    """Its `loss_valid`, the lowest of the run; of equal ones the first."""


def best_validation(lines: Sequence[Mapping[str, Any]]) -> Best | None:
    """The best validation among the logged steps of a run; None without any."""
    points = curve(lines, "loss_valid")
    return Best(*min(points, key=lambda point: point[1])) if points else None


def best_of_run(run_dir: epath.PathLike) -> Best | None:
    """The best validation in a run's log, the same in every process."""
    best = best_validation(read_metrics(run_dir)) if jax.process_index() == 0 else None
    told = json.loads(distributed.from_first(json.dumps(best and dataclasses.asdict(best))))
    return None if told is None else Best(**told)


def checkpoint_of(run_dir: epath.PathLike, best: Best) -> epath.Path | None:
    """Where the checkpoint of the best validation is; None if it is not there, as in runs of
    earlier versions."""
    path = epath.Path(run_dir) / "checkpoints" / str(best.step)
    return path if path.exists() else None


class BestKept:
    """Follows a run's validations: keeps the best one's checkpoint, and says once that it
    overfits."""

    def __init__(
        self,
        run_dir: epath.PathLike,
        keep: Callable[[int], None],
        say: Callable[[str], None],
        since: int = 0,
    ):
        """`keep` is told the step whose checkpoint is to be kept; `say` gets lines for the user;
        `since` is as in `overfitting`."""
        self._run_dir, self._keep, self._say, self._since = run_dir, keep, say, since
        self._best, self._warned = best_of_run(run_dir), False
        if self._best is not None:
            keep(self._best.step)

    def validated(self, step: int, values: Mapping[str, Any]) -> bool:
        """Whether this validation, which is logged, is the best by now: it is to be saved."""
        loss = values.get("loss_valid")
        if loss is None or not math.isfinite(loss):
            return False
        if self._best is None or loss < self._best.loss:
            self._best, self._warned = Best(step, loss), False
            self._keep(step)
            return True
        if not self._warned and (said := overfitting(read_metrics(self._run_dir), self._since)):
            self._say(f"warning: {said}")
            self._warned = True
        return False

    def end(self, step: int) -> None:
        """Say where the best checkpoint is, if it is not that of the last step."""
        best = self._best
        if best is not None and best.step < step and (kept := checkpoint_of(self._run_dir, best)):
            self._say(
                f"the validation loss was lowest, {best.loss:.4f}, at step {best.step}: {kept}"
            )


def overfitting(lines: Sequence[Mapping[str, Any]], since: int = 0) -> str:
    """A sentence that says since when a run overfits; empty where it does not.

    It does where the last three validations at least are worse than the best, while the mean loss
    of the training steps since is lower than that of as many logged steps before. Only lines after
    step `since` count: the earlier stages of a curriculum train on other rows than validate.
    """
    lines = [line for line in lines if line["step"] > since]
    best = best_validation(lines)
    if best is None:
        return ""
    worse = [value for step, value in curve(lines, "loss_valid") if step > best.step]
    after = [value for step, value in curve(lines, "loss") if step > best.step]
    before = [value for step, value in curve(lines, "loss") if step <= best.step][-len(after) :]
    if len(worse) < _PATIENCE or not (before and after):  # a damaged log may have lost them
        return ""
    if not statistics.fmean(after) < statistics.fmean(before):
        return ""
    return (
        f"overfitting: the validation loss was lowest at step {best.step} ({best.loss:.4f}) and is "
        f"{worse[-1]:.4f} now, while the training loss fell."
    )
