"""Thin entry points, run from a checkout as `python -m launch.NAME`: parse, override, call."""

import _thread
import signal
import sys
import time
from types import TracebackType
from typing import Any


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As Python's, but silent on Ctrl-C, which may come while modules are imported, before
    `env.main` runs."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def unraisablehook(unraisable: Any) -> None:
    """As Python's, but Ctrl-C that comes where nothing can be raised, as in what jax does whenever
    garbage is collected, comes again: Python would only print it, and go on."""
    at_exit = "atexit" in (unraisable.err_msg or "")  # when nothing is left to end
    if issubclass(unraisable.exc_type, KeyboardInterrupt) and not at_exit:
        # Not `threading`, which may be in the middle of something.
        _thread.start_new_thread(_interrupt, (_thread.get_ident(),))
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt(thread: int) -> None:
    time.sleep(0.01)  # until what must not be interrupted has ended
    signal.pthread_kill(thread, signal.SIGINT)


sys.excepthook = _excepthook
if sys.unraisablehook is sys.__unraisablehook__:  # pytest has its own
    sys.unraisablehook = unraisablehook
