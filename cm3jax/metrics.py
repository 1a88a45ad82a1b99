"""What a run reports: `metrics.jsonl` for tools, and progress for people."""

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.progress
from etils import epath

from cm3jax.files import write_atomic


@dataclasses.dataclass(frozen=True)
class Work:
    """What one global batch costs."""

    tokens: int
    """Tokens that the model reads, padding included; pictures count their codes."""
    flops: float
    """Floating-point operations of forward and backward pass, by formula."""


class MetricsLog:
    """`metrics.jsonl` of a run: one object per logged step, in order, each step once.

    Opening it for a run that goes on after `step` drops later lines, and a line that was cut off
    when the run was killed.
    """

    def __init__(self, run_dir: epath.PathLike, step: int):
        self._path = epath.Path(run_dir) / "metrics.jsonl"
        kept = [line for line in read(run_dir) if line["step"] <= step]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one step; values that are not finite become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps(clean) + "\n")


def read(run_dir: epath.PathLike) -> list[dict[str, Any]]:
    """The logged steps of a run, oldest first; empty if there are none."""
    path = epath.Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # the last is empty, or was cut off


class Progress:
    """Progress of a run for people: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, steps: int):
        self._name, self._steps = name, steps
        self._console = rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(bar_width=24),
            "{task.completed}/{task.total} {task.fields[values]}",
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, values="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)

    def show(self, step: int, values: Mapping[str, Any], seconds_left: float | None) -> None:
        """Show a logged step: the losses, the rate and the time that is left."""
        parts = [f"{k} {v:.4f}" for k, v in values.items() if k.startswith("loss") and v == v]
        if values.get("tokens_per_second"):
            parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if seconds_left is not None:
            parts.append(f"{datetime.timedelta(seconds=round(seconds_left))} left")
        text = "  ".join(parts)
        self._bar.update(self._task, completed=step, values=text)
        if not self._console.is_terminal:
            self.say(f"{self._name} {step}/{self._steps}  {text}")
