"""Thin entry points, run from a checkout as `python -m launch.NAME`: parse, override, call."""

import sys
from types import TracebackType


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As Python's, but silent on Ctrl-C, which may come while modules are imported, before
    `env.main` runs."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _excepthook
