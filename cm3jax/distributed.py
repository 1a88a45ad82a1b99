"""The processes of a run: joining them, and agreeing to stop."""

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize() -> None:
    """Join the run's other processes when the environment names their coordinator.

    Call it before anything else touches jax. Without `JAX_COORDINATOR_ADDRESS` the run is a single
    process; nothing is guessed.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ and not jax.distributed.is_initialized():
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
        )


def _number(variable: str) -> int | None:
    """An environment variable as a number; None lets jax ask the cluster."""
    return int(os.environ[variable]) if variable in os.environ else None


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order; all must have the same length."""
    own = np.frombuffer(text.encode(), np.uint8)
    every = np.atleast_2d(multihost_utils.process_allgather(own))
    return [row.tobytes().decode() for row in every]


class Preemption:
    """Notices SIGTERM; a context manager around the training loop."""

    def __enter__(self) -> "Preemption":
        self._terminated = False
        self._several = jax.process_count() > 1
        if not self._several:  # with several, jax's own handler tells all processes
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _notice(self, *_) -> None:
        self._terminated = True

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`; the same answer in every process."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._terminated
