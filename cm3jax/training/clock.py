"""The time that steps take, and how much of it is waiting for data."""

import time
from collections.abc import Iterator

from cm3jax.data.pipeline import HostBatch


class StepClock:
    """Seconds per step since the last mark, and seconds in all."""

    def __init__(self, seconds: float):
        self._before, self._begin = seconds, time.monotonic()
        self._mark: tuple[int, float] | None = None
        self._waited = 0.0

    @property
    def seconds(self) -> float:
        """Time in the loop over all lives of the run."""
        return self._before + time.monotonic() - self._begin

    def mark(self, step: int) -> None:
        """Measure from here: after compilation, validation, saving."""
        self._mark, self._waited = (step, time.monotonic()), 0.0

    def wait(self, batches: Iterator[HostBatch]) -> HostBatch:
        """The next batch; the time until it is there counts as waiting."""
        begin = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begin
        return batch

    @property
    def waiting(self) -> float | None:
        """Share of the time since the mark that was spent waiting for data."""
        return self._waited / (time.monotonic() - self._mark[1]) if self._mark else None

    def per_step(self, step: int) -> float | None:
        """Seconds per step since the mark; None before there is one."""
        if self._mark is None or step == self._mark[0]:
            return None
        return (time.monotonic() - self._mark[1]) / (step - self._mark[0])
