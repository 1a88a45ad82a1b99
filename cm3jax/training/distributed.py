"""The processes of a run: joining them, and agreeing to stop."""

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from cm3jax.errors import UserError

_COORDINATOR, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def initialize() -> None:
    """Join the run's other processes, as the environment names them.

    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`
    (from 0) are set for a run of several processes, none of them for a run of one; nothing is
    guessed. Call it before anything else touches jax. Raises `UserError` when they are no such set.
    """
    given = {name: os.environ.get(name, "") for name in (_COORDINATOR, _COUNT, _INDEX)}
    if not any(given.values()) or jax.distributed.is_initialized():
        return
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UserError(
            f"the environment has no {' and no '.join(missing)}; set all of {', '.join(given)} for "
            "one of several processes, or none of them for a single one."
        )
    count, index = given[_COUNT], given[_INDEX]
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"{_INDEX}={index} and {_COUNT}={count} name no process; the second is their number, "
            "the first counts from 0."
        )
    jax.distributed.initialize(given[_COORDINATOR], int(count), int(index))


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order; all must have the same length."""
    own = np.frombuffer(text.encode(), np.uint8)
    every = np.atleast_2d(multihost_utils.process_allgather(own))
    return [row.tobytes().decode() for row in every]


def from_first(text: str) -> str:
    """Process 0's text, in every process."""
    own = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(own.size)))
    buffer = np.zeros(size, np.int32)
    if jax.process_index() == 0:
        buffer[:] = own
    return (
        np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes().decode()
    )


class Preemption:
    """Notices SIGTERM; a context manager around the training loop."""

    def __init__(self):
        self.noticed = False
        """Whether it came; of a run of several processes jax knows."""

    def __enter__(self) -> "Preemption":
        self._several = jax.process_count() > 1
        if not self._several:  # with several, jax's own handler tells all processes
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _notice(self, *_) -> None:
        self.noticed = True

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`; the same answer in every process."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.noticed
