"""A trace of some steps of a run, and the time that its operations took.

`RUN/profile` is a log folder for XProf (`xprof RUN/profile`), with a `.trace.json.gz` per process
that https://ui.perfetto.dev opens, and `operations.json` with process 0's time by operation.
"""

import collections
import dataclasses
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from cm3jax.io.experiment_json import read_as
from cm3jax.io.files import write_atomic, write_json

_CONTAINERS = {"while", "call", "conditional"}
"""Operations that only run others, whose time is their own already."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """All operations of one kind, such as `dot` or `all-gather`."""

    name: str
    """The compiled operations' name, their numbers left out."""
    milliseconds: float
    """Time per step and device, the mean over both."""
    count: float
    """How many there are per step and device."""
    share: float
    """Part of the time of all operations; those that run at once count in full."""


class StepProfile:
    """Traces the steps that `train.profile` names; a context manager around the loop.

    What was traced is kept when the run ends before the last of them. Steps that a validation
    parts are traced in several parts, each in a folder of its own, and counted together.
    """

    def __init__(self, run_dir: epath.PathLike, steps: range):
        self._folder, self._steps = epath.Path(run_dir) / "profile", steps
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._part: list[int] = []
        """The steps of the trace that is under way."""
        self._last: Any = None
        """What the last of them gives."""
        self._sums = OperationSums()

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_) -> None:
        self.pause()

    def run(self, number: int, step: Callable[..., Any], *args: Any) -> Any:
        """`step(*args)`, the run's step of this number, traced if it is one of those named."""
        if number not in self._steps:
            return step(*args)
        if self._scratch is None:
            jax.block_until_ready(args)  # what earlier steps still do is none of its time
            self._scratch = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._scratch.name)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            self._last = None  # the step takes over what the one before gave
            out = step(*args)
        self._part.append(number)
        self._last = out
        self._sums.parts += len(jax.tree.leaves(out)[0].sharding.addressable_devices)
        if number == self._steps[-1]:
            self.pause()
        return out

    def pause(self) -> None:
        """Keep what was traced by now, if anything: what comes next, such as a validation, is no
        step, and its time is not counted. The next step begins another trace.
        """
        if self._scratch is None:
            return
        with self._scratch as scratch:
            self._scratch, last, self._last = None, self._last, None
            try:
                jax.block_until_ready(last)
            finally:
                jax.profiler.stop_trace()
            if self._part:  # none where its first step failed
                self._keep(Path(scratch))

    def _keep(self, scratch: Path) -> None:
        # A name per process, since containers often share that of their host.
        name, here = f"process-{jax.process_index()}", self._folder / "plugins" / "profile"
        folder, self._part = here / f"steps-{self._part[0]}-{self._part[-1]}", []
        for suffix in (".xplane.pb", ".trace.json.gz"):
            for path in scratch.rglob(f"*{suffix}"):
                write_atomic(folder / (name + suffix), path.read_bytes())
                if suffix == ".xplane.pb" and jax.process_index() == 0:
                    self._sums.add(path)
                    values = [dataclasses.asdict(one) for one in self._sums.operations()]
                    write_json(self._folder / "operations.json", values)


@dataclasses.dataclass
class OperationSums:
    """What the operations of some traces took together."""

    parts: int = 0
    """Steps times devices of this process."""
    nanoseconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, trace: os.PathLike[str]) -> None:
        """Count the operations in an `.xplane.pb`."""
        for name, duration in _events(trace):
            self.nanoseconds[name] += duration
            self.counts[name] += 1

    def operations(self) -> list[Operation]:
        """Each kind of operation, the longest first."""
        total = sum(self.nanoseconds.values())
        longest = sorted(self.nanoseconds.items(), key=lambda one: one[1], reverse=True)
        return [
            Operation(name, spent / 1e6 / self.parts, self.counts[name] / self.parts, spent / total)
            for name, spent in longest
        ]


def _events(trace: os.PathLike[str]) -> Iterator[tuple[str, float]]:
    """Kind and nanoseconds of each operation that a device ran."""
    planes = jax.profiler.ProfileData.from_file(os.fspath(trace)).planes
    for line in itertools.chain.from_iterable(plane.lines for plane in planes):
        for event in line.events:
            # TPUs have a line of operations, CPUs and GPUs say it of each event.
            name = event.name if line.name == "XLA Ops" else dict(event.stats).get("hlo_op")
            if name is not None and (kind := kind_of(str(name))) not in _CONTAINERS:
                yield kind, event.duration_ns


def kind_of(name: str) -> str:
    """The name of an operation without what numbers it: `%fusion.12.clone = f32[]...` is a
    `fusion`."""
    name = name.partition(" = ")[0].removeprefix("%")
    return re.sub(r"(\.(\d+|clone|remat\d*))+$", "", name)


def read_operations(run_dir: epath.PathLike) -> list[Operation]:
    """What a run's `profile/operations.json` says; empty where nothing was traced.

    Raises `UserError` if it is damaged.
    """
    path = epath.Path(run_dir) / "profile" / "operations.json"
    if not path.exists():
        return []
    return list(read_as(tuple[Operation, ...], path, "the time by operation"))
