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

from cm3jax.io.files import read_json, write_atomic, write_json

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

    What was traced is kept when the run ends before the last of them.
    """

    def __init__(self, run_dir: epath.PathLike, steps: range):
        self._folder, self._steps = epath.Path(run_dir) / "profile", steps
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._traced = 0
        """Steps times devices of this process."""

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def run(self, number: int, step: Callable[..., Any], *args: Any) -> Any:
        """`step(*args)`, the run's step of this number, traced if it is one of those named."""
        if number not in self._steps:
            return step(*args)
        if self._scratch is None:
            jax.block_until_ready(args)  # what earlier steps still do is none of its time
            self._scratch = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._scratch.name)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            out = step(*args)
        devices = jax.tree.leaves(out)[0].sharding.addressable_devices
        self._traced += len(devices)
        if number == self._steps[-1]:
            jax.block_until_ready(out)
            self._end()
        return out

    def _end(self) -> None:
        """Keep what was traced, if a trace is under way."""
        if self._scratch is None:
            return
        with self._scratch as scratch:
            self._scratch = None
            jax.profiler.stop_trace()
            self._keep(Path(scratch))

    def _keep(self, scratch: Path) -> None:
        # A name per process, since containers often share that of their host.
        name, here = f"process-{jax.process_index()}", self._folder / "plugins" / "profile"
        for suffix in (".xplane.pb", ".trace.json.gz"):
            for path in scratch.rglob(f"*{suffix}"):
                folder = f"steps-{self._steps[0]}-{self._steps[-1]}"
                write_atomic(here / folder / (name + suffix), path.read_bytes())
                if suffix == ".xplane.pb" and jax.process_index() == 0:
                    found = operations(path, self._traced)
                    values = [dataclasses.asdict(operation) for operation in found]
                    write_json(self._folder / "operations.json", values)


def operations(trace: os.PathLike[str], parts: int) -> list[Operation]:
    """The operations in an `.xplane.pb`, longest first; `parts` is steps times devices."""
    nanoseconds: dict[str, float] = collections.defaultdict(float)
    counts: collections.Counter[str] = collections.Counter()
    for name, duration in _events(trace):
        nanoseconds[name] += duration
        counts[name] += 1
    total = sum(nanoseconds.values())
    return [
        Operation(name, spent / 1e6 / parts, counts[name] / parts, spent / total)
        for name, spent in sorted(nanoseconds.items(), key=lambda item: -item[1])
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
    return [Operation(**values) for values in read_json(path, "the time by operation")]
