"""Saying where a run hangs."""

import faulthandler
import sys


class Watchdog:
    """Prints the stacks of all threads when no step ends; a context manager around the loop.

    They follow a line `Timeout (H:MM:SS)!` on standard error, every `seconds` (0: never) until a
    step ends; the run goes on. The clock is faulthandler's thread, which needs no interpreter
    lock: it also runs when native code holds that.
    """

    def __init__(self, seconds: int):
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.step_ended()
        return self

    def __exit__(self, *_) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def step_ended(self) -> None:
        """Start to count again."""
        if self._seconds:
            # A notebook's sys.stderr is no file.
            faulthandler.dump_traceback_later(self._seconds, repeat=True, file=sys.__stderr__)
