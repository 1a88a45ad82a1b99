"""Checksums of large files that were compared: not again until the files are written again.

    ~/.cache/cm3jax/verified/0123456789abcdef.json    a file's place, state and checksum

Comparing reads the whole file: as much as loading it, of a model of 7 billion parameters 28 GB. A
small file is compared each time. What is kept is the user's own, in the cache and not beside the
file, whose folder may be shared and not be written.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import digest, read_json, write_json
from cm3jax.io.paths import cache_home
from cm3jax.io.texts import file_state

_SMALL = 1 << 26
"""Bytes of a file that is compared each time: in a few hundredths of a second."""


def is_verified(
    path: epath.PathLike, wanted: str, checksum: Callable[[epath.PathLike], str]
) -> bool:
    """Whether `checksum(path)` is `wanted`, or was when the file was last written.

    Another size, time or inode makes it another file, and so does another place: a copy is compared
    for itself.
    """
    state = _state(path)
    if state[0] <= _SMALL:
        return checksum(path) == wanted
    place = os.path.realpath(path) if "://" not in os.fspath(path) else os.fspath(path)
    note = cache_home() / "verified" / f"{digest(place)}.json"
    known = {"path": place, "state": list(state), "checksum": wanted}
    if _kept(note) == known:
        return True
    if checksum(path) != wanted:
        return False
    with contextlib.suppress(OSError, UserError):  # without a cache it is compared each time
        write_json(note, known)
    return True


def _state(path: epath.PathLike) -> tuple[int, ...]:
    """`file_state`, and the time that nobody sets back: a copy from a backup onto the file keeps
    the others, whatever it holds."""
    if "://" in os.fspath(path):
        return file_state(path)
    return *file_state(path), os.stat(path).st_ctime_ns


def _kept(note: Path) -> object:
    try:
        return read_json(note, "the note of a checksum")
    except UserError:
        return None
