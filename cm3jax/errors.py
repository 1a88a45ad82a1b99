"""The one exception that a user is meant to read, and what a mistyped name was meant to be."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    Every launch command turns it into that sentence on standard error and exit code 2, without a
    traceback. Raise it for what a user can correct (a path, a value, a checkpoint of another
    vocabulary); let programming errors be ordinary exceptions.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" (did you mean {near[0]}?)" if near else ""
