"""Reading files and folders that another process may replace meanwhile."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from etils import epath

from cm3jax.errors import UserError

_TRIES = 5
T = TypeVar("T")


def read_unchanged(
    paths: Sequence[epath.Path],
    prepare: Callable[[], None],
    read: Callable[[], T],
    whole: Callable[[], bool] = lambda: True,
) -> T:
    """What `read` makes of files or folders, called after `prepare` until none of them is replaced
    meanwhile, and `whole` says so, too.

    Raises what `prepare` and `read` do, and `UserError` if they are replaced again and again. In a
    bucket nothing is noticed.
    """
    for _ in range(_TRIES):
        prepare()
        with contextlib.ExitStack() as opened:
            stood = [_held_open(path, opened) for path in paths]
            try:
                found = read()
            except (UserError, OSError, ValueError):
                if whole() and _stand(stood, paths):
                    raise
            else:
                if whole() and _stand(stood, paths):  # in this order: what ends now has replaced
                    return found
    raise UserError(f"{paths[0]} is replaced again and again; try later.")


def _held_open(path: epath.Path, opened: contextlib.ExitStack) -> int | None:
    """What is at a path, opened so that nothing new gets its number; None where nothing is."""
    if "://" in os.fspath(path) or not path.exists():
        return None
    try:
        number = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # moved aside since
        return None
    opened.callback(os.close, number)
    return number


def _stand(stood: Sequence[int | None], paths: Sequence[epath.Path]) -> bool:
    """Whether everything is still at its path."""
    return all(
        "://" in os.fspath(path) or (not path.exists() if number is None else is_at(number, path))
        for number, path in zip(stood, paths, strict=True)
    )


def is_at(number: int, path: epath.Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        there, here = os.stat(path), os.fstat(number)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
