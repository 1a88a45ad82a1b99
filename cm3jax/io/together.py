"""Files of a folder that are replaced together, as weights and their config: a reader sees all of
one version, whenever the writer is killed.

    .NAME.new    complete; from the moment that the last file has this name all will be replaced
    NAME         what readers open

Whoever opens the folder next, to read or to write, first finishes a replacement that was
interrupted. A whole folder is swapped instead where nothing else is in it (`cm3jax.io.folders`).
"""

import time
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from cm3jax.io.folders import Held, hold
from cm3jax.io.unchanged import T, read_unchanged

Write = Callable[[epath.Path], None]
"""Writes a file to a path, atomically."""
_PATIENCE = 10.0
"""Seconds that a reader waits for files to be renamed, which takes milliseconds."""


def replace_together(
    folder: epath.PathLike, names: Sequence[str], files: Mapping[str, Write]
) -> None:
    """Write some of the files `names`, the last one among them, and replace them all at once.

    To be called under `hold`. Raises as the writing does, and then nothing is replaced.
    """
    place = epath.Path(folder)
    _finish(place, names)
    for name in names:
        _new(place, name).unlink(missing_ok=True)  # of one that was killed before it was complete
    try:
        for name in names:
            if name in files:
                files[name](_new(place, name))
    except BaseException:  # Ctrl-C, too
        for name in reversed(names):  # first the one that says that all are complete
            _new(place, name).unlink(missing_ok=True)
        raise
    _finish(place, names)


def settle_together(folder: epath.PathLike, names: Sequence[str]) -> None:
    """Finish a replacement of the files `names` that was interrupted.

    While another process finishes it, wait; raises `UserError` where nothing may be written.
    """
    place, until = epath.Path(folder), time.monotonic() + _PATIENCE
    while _new(place, names[-1]).exists():
        try:
            with hold(place, "finishing to replace files in it"):
                _finish(place, names)
        except Held:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def read_together(folder: epath.PathLike, names: Sequence[str], read: Callable[[], T]) -> T:
    """What `read` makes of the files `names`, all of one version; raises what `read` does."""
    place = epath.Path(folder)
    paths = [place / name for name in names]
    return read_unchanged(
        paths,
        lambda: settle_together(place, names),
        read,
        lambda: not _new(place, names[-1]).exists(),
    )


def _finish(place: epath.Path, names: Sequence[str]) -> None:
    if _new(place, names[-1]).exists():
        for name in names:
            if _new(place, name).exists():
                _new(place, name).replace(place / name)


def _new(place: epath.Path, name: str) -> epath.Path:
    return place / f".{name}.new"
