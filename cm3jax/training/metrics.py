"""What a run reports: `metrics.jsonl` for tools, TensorBoard and progress for people."""

import dataclasses
import datetime
import json
import logging
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.progress
from etils import epath

import cm3jax
from cm3jax.io.files import naming, read_json_lines, read_log, write_atomic
from cm3jax.training.hardware import a100_hours, peak_flops

_log = logging.getLogger(__name__)

_MOST_STEPS = 1 << 53
"""More than any run has, and as many as a float counts."""


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one global batch costs."""

    tokens: int
    """Tokens that the model reads, padding included; images count their codes."""
    flops: float
    """Floating-point operations of forward and backward pass, by formula."""


def utilisation(work: StepCost, steps: int, seconds_per_step: float | None) -> dict[str, Any]:
    """What work has been done in `steps` steps, and how fast the last ones went.

    `flops` and `a100_hours` (at an A100's full rate) are sums over the run; `mfu` is the share of
    the devices' bfloat16 peak that `work.flops` took, None where the peak is not known.
    """
    per_second = work.flops / seconds_per_step if seconds_per_step else None
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "tokens_per_second": work.tokens / seconds_per_step if seconds_per_step else None,
        "mfu": per_second / (peak * jax.device_count()) if per_second and peak else None,
        "flops": work.flops * steps,
        "a100_hours": a100_hours(work.flops * steps),
    }


class MetricsLog:
    """`metrics.jsonl` of a run: one object per logged step, in order, each step once.

    Opening it for a run that goes on after `step` drops later lines, and a line that was cut off
    when the run was killed; other damaged lines are set aside. Numbers also go to `tensorboard/`,
    where TensorBoard is installed (the extra `report`). A bucket cannot append to a file: there the
    whole log is written each time.
    """

    def __init__(self, run_dir: epath.PathLike, step: int):
        self._path = epath.Path(run_dir) / "metrics.jsonl"
        lines, damaged = _read(self._path)
        _set_aside(self._path, [line for line in damaged if line.endswith(b"\n")])
        kept = [line for line in lines if line["step"] <= step]
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(self._path, self._text)
        self._board = _Board.open(epath.Path(run_dir) / "tensorboard", step)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one step; values that are not finite become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps(clean) + "\n"
        if "://" in os.fspath(self._path):
            self._text += line
            write_atomic(self._path, self._text)
        else:
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        if self._board is not None:
            self._board.write(clean)


class _Board:
    """Event files for TensorBoard, one for each life of a run."""

    @classmethod
    def open(cls, folder: epath.Path, step: int) -> "_Board | None":
        """Begin a file for the steps after `step`; None where TensorBoard is not installed."""
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            return None
        return cls(folder, step)

    def __init__(self, folder: epath.Path, step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(os.fspath(folder))
        # TensorBoard forgets what earlier lives wrote from this step on.
        log = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=log))

    def write(self, values: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {n: v for n, v in values.items() if isinstance(v, int | float) and n != "step"}
        summary = Summary(
            value=[Summary.Value(tag=n, simple_value=float(v)) for n, v in numbers.items()]
        )
        self._writer.add_event(Event(wall_time=time.time(), step=values["step"], summary=summary))
        self._writer.flush()


def record_life(
    run_dir: epath.PathLike,
    step: int,
    options: Mapping[str, Any] = types.MappingProxyType({}),
    changes: Mapping[str, Sequence[Any]] = types.MappingProxyType({}),
) -> None:
    """Note in `lives.jsonl` which code goes on with a run after `step`, on what, with all its
    options, and which of them changed since the life before: from what to what."""
    path = epath.Path(run_dir) / "lives.jsonl"
    life = {
        "step": step,
        "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "version": cm3jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "changes": {name: list(pair) for name, pair in changes.items()},
        "options": dict(options),
    }
    before, damaged = read_json_lines(path)
    _set_aside(path, damaged)
    write_atomic(path, "".join(json.dumps(each) + "\n" for each in [*before, life]))


def lives(run_dir: epath.PathLike) -> list[dict[str, Any]]:
    """What `record_life` noted, oldest first, without damaged lines; empty if there is nothing."""
    return read_json_lines(epath.Path(run_dir) / "lives.jsonl")[0]


def _set_aside(path: epath.Path, damaged: Sequence[bytes]) -> None:
    """Keep a log's damaged lines in a file of their own, and warn: no sound run stops for them."""
    if damaged:
        aside = path.parent / f"damaged-{path.name}"
        before = read_log(aside)
        write_atomic(aside, before + b"".join(line.rstrip(b"\n") + b"\n" for line in damaged))
        _log.warning(
            "%s had %d damaged lines, which are now in %s; the run goes on without them.",
            *(path, len(damaged), aside.name),
        )


def revision() -> str | None:
    """The commit of the running code, with `+` after it if files differ; None if nothing says.

    A checkout that was shipped without its history says it in `CM3JAX_REVISION`.
    """
    if "CM3JAX_REVISION" in os.environ:
        return os.environ["CM3JAX_REVISION"]
    command = [
        "git",
        "-C",
        str(Path(cm3jax.__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
    ]
    try:
        answer = subprocess.run(
            [*command, "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def read_metrics(run_dir: epath.PathLike) -> list[dict[str, Any]]:
    """The logged steps of a run, oldest first, without damaged lines; empty if there are none."""
    return _read(epath.Path(run_dir) / "metrics.jsonl")[0]


def _read(path: epath.Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The lines that name their step, and the damaged ones."""
    objects, damaged = read_json_lines(path)
    lines = [each for each in objects if _is_step(each.get("step"))]
    others = (each for each in objects if not _is_step(each.get("step")))
    return lines, damaged + [json.dumps(each).encode() + b"\n" for each in others]


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_STEPS


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the logged steps that have a number of that name."""
    return [(line["step"], float(line[name])) for line in lines if _is_number(line.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def validation_name(name: str) -> str:
    """How a metric is called where validation measures it: `loss_text` is `loss_valid_text`."""
    first, *rest = name.split("_")
    return "_".join([first, "valid", *rest])


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
        """Show a logged step: the losses, the rate and the time left."""
        shown = {k: v for k, v in values.items() if k.startswith(("loss", "documents"))}
        parts = [f"{k} {v:.4f}" for k, v in shown.items() if v == v]
        if values.get("tokens_per_second"):
            parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if values.get("mfu"):
            parts.append(f"MFU {values['mfu']:.1%}")
        if values.get("data_wait"):
            parts.append(f"{values['data_wait']:.0%} waiting for data")
        if seconds_left is not None:
            parts.append(f"{datetime.timedelta(seconds=round(seconds_left))} left")
        text = "  ".join(parts)
        self._bar.update(self._task, completed=step, values=text)
        if not self._console.is_terminal:
            self.say(f"{self._name} {step}/{self._steps}  {text}")
