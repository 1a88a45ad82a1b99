"""Supported paths: local ones, and buckets on `gs://`; the user's cache; what is below a folder."""

import contextlib
import functools
import glob
import os
import re
import stat
import tempfile
from pathlib import Path

from etils import epath

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


def is_bucket(path: epath.Path) -> bool:
    """Whether a path is in a bucket, which has neither locks nor links."""
    return "://" in os.fspath(path)


def real(folder: epath.PathLike) -> epath.Path:
    """The real path of a folder, symbolic links followed."""
    path = epath.Path(folder)
    return path if is_bucket(path) else epath.Path(os.path.realpath(path.expanduser()))


def matching(folder: epath.PathLike, pattern: str) -> list[epath.Path]:
    """What a pattern matches in a folder, in no order. `epath.Path.glob` would take brackets in the
    folder's own name for a pattern."""
    return list(epath.Path(glob.escape(os.fspath(folder))).glob(pattern))


def files_below(root: epath.Path) -> set[str]:
    """Relative names of all files below a folder; links are files."""
    names, waiting = set(), [root]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir() and not os.path.islink(path):
                waiting.append(path)
            else:
                names.add(str(path.relative_to(root)))
    return names
