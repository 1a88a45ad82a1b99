"""A watchdog that says where a run hangs."""

import sys
import threading
import time
import traceback


class Watchdog:
    """Prints the stacks of all threads when no step ends; a context manager around the loop.

    They follow a line `no step has ended for N s` on standard error, every `seconds` (0: never)
    until a step ends; the run goes on. A waiting collective releases the interpreter lock, so a
    Python thread can watch it; faulthandler's, which takes no lock, reads stacks while they change
    and may crash a run that is only slow.
    """

    def __init__(self, seconds: int):
        self._seconds = seconds
        self._ended = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.step_ended()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._seconds:
            self._thread.join()

    def step_ended(self) -> None:
        """Start to count again."""
        self._ended = time.monotonic()

    def _watch(self) -> None:
        told = self._ended
        while not self._stop.wait(max(self._ended, told) + self._seconds - time.monotonic()):
            now = time.monotonic()
            if now >= max(self._ended, told) + self._seconds:
                told = now
                print(self._stacks(now - self._ended), file=sys.__stderr__, flush=True)

    def _stacks(self, seconds: float) -> str:
        """Where every thread but this one is."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = [f"no step has ended for {seconds:.0f} s; the threads are at"]
        for number, frame in sys._current_frames().items():
            if number != threading.get_ident():
                name = names.get(number, "a thread of a library")
                lines += [f"{name}:\n{''.join(traceback.format_stack(frame)).rstrip()}"]
        return "\n".join(lines)
