"""Supported paths: local ones, and buckets on `gs://`; and the user's cache."""

import contextlib
import functools
import os
import re
import stat
import tempfile
from pathlib import Path

from cm3jax.errors import UserError

_ADDRESSES = ("gs", "http", "https", "tcp", "unix")
"""Buckets, and addresses of servers."""


def require_supported(path: str, what: str) -> None:
    """Raise `UserError` for a path like `s3://…` or `file://…`; `what` names the option."""
    scheme = re.match(r"([A-Za-z][\w+.-]*):/", path)
    if scheme and scheme[1].lower() not in _ADDRESSES:
        raise UserError(
            f"{what} is {path!r}, but paths are those of this machine, without {scheme[1]}:, or "
            "buckets on gs://; copy or mount what lies elsewhere."
        )
    if "\0" in path:
        raise UserError(f"{what} is {path!r}, which no path can be; correct it.")


def require_unicode_path(path: os.PathLike[str] | str, what: str) -> None:
    """Raise `UserError`, to be called before any work, for a folder whose whole path is not UTF-8,
    as old files' names are: the libraries that write `what` there, e.g. "checkpoints", take none.
    """
    place = path if "://" in os.fspath(path) else os.path.realpath(path)
    try:
        os.fspath(place).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place} is not UTF-8, and {what} cannot be written there; rename the folder that is "
            "not, or give another one."
        ) from None


def require_folder(path: os.PathLike[str] | str, what: str) -> None:
    """Raise `UserError`, to be called before any work, unless a folder is missing or may be written
    to; `what` names what goes there, e.g. "the samples"."""
    if "://" in os.fspath(path):
        return
    place = os.path.realpath(path)  # a link may lead to what is to be made
    if os.path.lexists(place) and not os.path.isdir(place):
        raise UserError(f"{path} is not a folder; give a folder for {what}.")
    if os.path.isdir(place) and not os.access(place, os.W_OK):
        raise UserError(f"{path} may not be written to; give another folder for {what}.")


def cache_home() -> Path:
    """This project's folder in the user's cache, which need not exist; in the folder for temporary
    files where the user has no home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a container's user, whom nothing names
        home = _private_folder(tempfile.gettempdir())
    return home / "cm3jax"


@functools.cache
def _private_folder(among: str) -> Path:
    """A folder in a shared one that only this user can have written, because compiled programs
    found there are run. Where somebody else has taken its name, each process has its own."""
    folder = Path(among) / f"cache-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="cache-", dir=among))
