"""Folders that commands write: by one writer at a time, replaced as a whole, and only our own.

    with hold(folder, "training miniature/decoder"):    a second writer is refused in one sentence
        require_ours(folder, recognised, "a run")       so is a folder of somebody else's
        ...

A folder that is replaced (a bank, a corpus) is written beside its place and swapped in:

    .NAME.new    complete; from the moment that it has this name the swap will be finished
    NAME         what readers open
    .NAME.old    what stood there; deleted last

Whoever opens the folder next, to read or to write, first calls `settle`, which finishes a swap that
was interrupted. NAME may be a symbolic link: all of this happens beside its target, and the link
stays. A function `recognised` says which files of a folder are ours. Nothing else is ever deleted:
a stranger's files in a folder that is replaced move into the new one.

Buckets (`gs://`) and file systems without `flock` have no locks: two writers of one folder are not
noticed there. Nor does a bucket rename a folder at once: a reader may have to open it twice.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import naming
from cm3jax.io.paths import files_below, is_bucket, real
from cm3jax.io.unchanged import T, is_at, read_unchanged

Recognised = Callable[[epath.Path], Sequence[str] | None]
"""The files in a folder that are ours, relative to it, those that show it last; None if the folder
is not ours. It must not raise, whatever is there."""
_PATIENCE = 10.0
"""Seconds that a reader waits for a swap under way, which takes milliseconds."""
_held = threading.local()
_open_locks: set[int] = set()


class Held(UserError):
    """Raised where another process, or another thread of this one, is writing the folder."""


# -------------------------------------------------------------------------------------- one writer


@contextlib.contextmanager
def hold(folder: epath.PathLike, doing: str) -> Iterator[None]:
    """Be the only writer of a folder, which need not exist yet, until the body ends.

    `doing` tells whoever is refused meanwhile what is going on, e.g. "training miniature/decoder".
    The lock goes with the process, however that ends. A thread may hold a folder that it holds
    already; of a distributed run only process 0 holds it. Raises `Held`, naming the first writer,
    where there is another one, and `UserError` where nothing can be written.
    """
    place = real(folder)
    holding = _held.__dict__.setdefault("places", set())
    if is_bucket(place) or str(place) in holding or not _is_first_process():
        yield
        return
    lock = _lock(place, doing)
    holding.add(str(place))
    try:
        yield
    finally:
        holding.discard(str(place))
        _unlock(place, lock)


def is_held(folder: epath.PathLike) -> bool:
    """Whether this thread holds a folder's lock: there is none in a bucket, nor for other processes
    than the first one of a distributed run."""
    return str(real(folder)) in _held.__dict__.get("places", ())


def _is_first_process() -> bool:
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def _lock_path(place: epath.Path) -> epath.Path:
    """The lock file: beside the folder, which may be swapped, or in it if nothing can be written
    beside it."""
    if place.is_dir() and not os.access(place.parent, os.W_OK):
        return place / ".lock"
    return place.parent / f".{place.name}.lock"


def _lock(place: epath.Path, doing: str) -> int:
    """The locked file; its content names us."""
    path = _lock_path(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (lock := _take_lock(path, place)) is None:
            pass
    except OSError as error:
        if os.path.islink(path) or path.is_dir():
            raise UserError(
                f"{path} would be the lock of {place}, but is a folder or a link; move it away."
            ) from None
        raise UserError(
            f"{place} cannot be written ({error.strerror}: {error.filename or path}); give another "
            "path, or correct its permissions."
        ) from None
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    about = {"pid": os.getpid(), "host": socket.gethostname(), "what": doing, "since": since}
    try:
        with naming(path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(about).encode(), 0)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(lock)
        raise
    _open_locks.add(lock)
    return lock


def _take_lock(path: epath.Path, place: epath.Path) -> int | None:
    """The lock file, locked; None where it is to be tried again, since what stood there went."""
    lock, ours = _open_lock(path)
    try:
        if not _try_flock(lock, ours):
            raise Held(f"{place} is in use: {_holder(path)}; wait until that ends, or stop it.")
        if is_at(lock, path):  # else the one who held it has just removed it
            _require_lock(lock, path, place)
            if ours:
                return lock
            path.unlink()  # of a user who was killed
    except (OSError, UserError):
        os.close(lock)  # or this process would hold it on
        raise
    os.close(lock)
    return None


def _open_lock(path: epath.Path) -> tuple[int, bool]:
    """The lock file, opened, and whether it may be written: another user's may only be read."""
    try:
        # What a link leads to is not ours to write.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666), True
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), False


def _require_lock(lock: int, path: epath.Path, place: epath.Path) -> None:
    if os.fstat(lock).st_size and _about(path) is None:
        raise UserError(f"{path} would be the lock of {place}, but is another file; move it away.")


def _unlock(place: epath.Path, lock: int) -> None:
    path = _lock_path(place)
    with contextlib.suppress(OSError):
        if is_at(lock, path):
            path.unlink()
    _open_locks.discard(lock)
    os.close(lock)


def _try_flock(lock: int, ours: bool) -> bool:
    """Whether it is locked now. Where the file system has no locks ours counts as locked, and
    another user's, whose owner may be alive, raises `OSError`."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if not ours or error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _holder(path: epath.Path) -> str:
    """The holder of a lock, in words."""
    for _ in range(20):
        if about := _about(path):
            return about
        time.sleep(0.02)  # it is being written
    return "another process writes it"


def _about(path: epath.Path) -> str | None:
    """What a lock's content says; None if it is none of ours."""
    try:
        return "{what} (process {pid} on {host}, since {since})".format(
            **json.loads(path.read_text("utf-8"))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _forget_locks() -> None:
    """A forked child must not keep its parent's locks after the parent is dead."""
    for lock in _open_locks:
        os.close(lock)
    _open_locks.clear()
    _held.__dict__.clear()


os.register_at_fork(after_in_child=_forget_locks)


# --------------------------------------------------------------------------------------- ownership


def require_ours(folder: epath.PathLike, recognised: Recognised, what: str) -> None:
    """Raise `UserError` unless a folder is missing, empty, or ours to write.

    To be called before any work. `what` names what is to be written there, e.g. "a memory bank".
    """
    place = real(folder)
    if not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"{folder} is a file; give a folder for {what}.")
    if recognised(place) is None and any(entry.name != ".lock" for entry in place.iterdir()):
        raise UserError(
            f"{folder} is not empty and does not hold {what}; nothing was changed there. Give "
            "another folder."
        )


def require_scratch(
    folder: epath.PathLike, recognised: Recognised, names: Sequence[str] = ("new", "old")
) -> None:
    """Raise `UserError` unless each of these `scratch` paths is missing, empty, or ours.

    To be called before any work; by default they are those that `swap` needs.
    """
    for path in (scratch(folder, name) for name in names):
        if not os.path.lexists(path):
            continue
        linked = os.path.islink(path) or not path.is_dir()
        if linked or (recognised(path) is None and any(path.iterdir())):
            raise UserError(
                f"{path} is none of this program's, and stands where the next version of {folder} "
                "is written; nothing was changed. Move it away."
            )


def delete(folder: epath.PathLike, recognised: Recognised) -> None:
    """Delete our files in a folder, those that show whose it is last, and the folder if that leaves
    it empty; nothing where it is not ours."""
    folder = epath.Path(folder)
    for name in _own(folder, recognised) or ():
        (folder / name).unlink(missing_ok=True)
    _prune(folder)


def _own(folder: epath.Path, recognised: Recognised) -> list[str] | None:
    """Our files there; a manifest that somebody wrote names none outside the folder, and none that
    no file can have as its name."""
    names = recognised(folder) if folder.is_dir() else None
    if names is None:
        return None
    parts = {name: epath.Path(name).parts for name in names}
    inside = [n for n in names if ".." not in parts[n] and not os.path.isabs(n) and parts[n]]
    return [n for n in inside if is_bucket(folder) or os.path.lexists(folder / n)]


def _prune(folder: epath.Path) -> None:
    """Remove a folder and the folders in it, as far as they are empty."""
    if not folder.is_dir() or os.path.islink(folder):
        return
    for entry in list(folder.iterdir()):
        _prune(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


# ------------------------------------------------------------------------------------------- swaps


def scratch(folder: epath.PathLike, name: str) -> epath.Path:
    """A hidden path beside a folder (`.NAME.name`), on the same disk, to write its next version."""
    place = real(folder)
    return place.parent / f".{place.name}.{name}"


def swap(complete: epath.PathLike, folder: epath.PathLike, recognised: Recognised) -> None:
    """Move a complete folder, written at a `scratch` path, to a folder's place, and delete what of
    ours stood there.

    To be called under `hold`. Killed at any moment, the next `settle` finishes it; `UserError` if
    something in the way is not ours.
    """
    _finish(folder, recognised)
    require_ours(folder, recognised, "what is to be replaced")
    require_scratch(folder, recognised)
    epath.Path(complete).rename(scratch(folder, "new"))
    _finish(folder, recognised)


def settle(folder: epath.PathLike, recognised: Recognised) -> None:
    """Finish a swap that was interrupted, so that the folder is complete, as it was or replaced.

    To be called whenever a folder is opened. While another process swaps it, wait for that if there
    is nothing to open; where nothing may be written and the new folder is not in its place yet,
    raises `UserError`.
    """
    if not _unfinished(folder, recognised):
        return
    place, until = real(folder), time.monotonic() + _PATIENCE
    while True:
        try:
            with hold(folder, "finishing to replace it"):
                _finish(folder, recognised)
            return
        except Held:
            if place.exists():
                return
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        except (UserError, OSError):
            if place.exists() and not scratch(folder, "new").exists():
                return  # only leftovers, which cannot be deleted here
            raise


def read_whole(folder: epath.PathLike, recognised: Recognised, read: Callable[[], T]) -> T:
    """What `read` makes of a folder's files, all of them of one version.

    Settles the folder first, and reads again where it is replaced meanwhile. Readers that keep its
    files open may go on with them. Raises what `read` does.
    """
    return read_unchanged([epath.Path(folder)], lambda: settle(folder, recognised), read)


def sweep(folder: epath.PathLike, recognised: Recognised, names: str) -> None:
    """Delete what dead writers left beside a folder: all that is ours of `.NAME.x`, where x matches
    the regular expression `names`. To be called under `hold`."""
    place = real(folder)
    if not place.parent.is_dir():
        return
    left = re.compile(rf"\.{re.escape(place.name)}\.(?:{names})")
    for path in list(place.parent.iterdir()):
        if left.fullmatch(path.name) and path.is_dir() and not os.path.islink(path):
            delete(path, recognised)


def _own_aside(aside: epath.Path, recognised: Recognised) -> list[str] | None:
    """Our files at a `scratch` path, where we make no link: what one leads to is whole elsewhere,
    maybe another bank."""
    return None if os.path.islink(aside) else _own(aside, recognised)


def _unfinished(folder: epath.PathLike, recognised: Recognised) -> bool:
    old = scratch(folder, "old")
    emptied = old.is_dir() and not files_below(old)
    asides = (old, scratch(folder, "new"))
    return emptied or any(_own_aside(path, recognised) is not None for path in asides)


def _finish(folder: epath.PathLike, recognised: Recognised) -> None:
    place, new, old = real(folder), scratch(folder, "new"), scratch(folder, "old")
    if _own_aside(new, recognised) is not None:
        if place.exists():
            require_ours(place, recognised, "what is to be replaced")
            _clear(old, place, recognised)
            place.rename(old)
        new.rename(place)
    elif not place.exists() and _own_aside(old, recognised) is not None:
        old.rename(place)
    _clear(old, place, recognised)


def _clear(old: epath.Path, place: epath.Path, recognised: Recognised) -> None:
    """Delete what of a replaced folder is ours, and move the rest to where it belongs now."""
    own = _own_aside(old, recognised)
    if own is None:
        _prune(old)  # an empty folder was replaced, or all of it is deleted already
        return
    for name in sorted(files_below(old) - set(own)):
        target, number = place / name, 0
        while target.exists():
            number += 1
            target = place / f"{name}.{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        (old / name).rename(target)
    delete(old, recognised)
