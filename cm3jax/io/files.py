"""Atomic writes and checked reads on local or bucket paths (`gs://`, through etils.epath)."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.texts import decode_text, read_regular, require_regular


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Give an `OSError` from writing a file the file's name: a full disk's has no `filename`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        number = error.errno or errno.ENOSPC  # numpy says only that it could not write all
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file to write that takes its name when all is written, and vanishes on an error.

    A reader sees the old content or the new one, never a part. Of several writers at once, on
    whatever machines, one wins. Raises `UserError` rather than replace a folder or a device, and
    `OSError` if writing fails, say on a full disk.
    """
    path = epath.Path(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is a folder or a device and not a file; give another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a folder often have the same process id.
    scratch = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        with naming(path):
            with scratch.open("wb") as file:
                yield file
            scratch.replace(path)
    except BaseException:  # Ctrl-C, too
        scratch.unlink(missing_ok=True)
        raise


def write_atomic(path: epath.PathLike, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises as `replacing` does, and leaves nothing behind.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def require_replaceable(path: epath.PathLike, is_ours: Callable[[bytes], bool], what: str) -> None:
    """Raise `UserError` unless nothing is at a path, or an empty file, or one that may be replaced
    because its content is of our making. To be called before any work; `what` names what will be
    written there, e.g. "the scores"."""
    path = epath.Path(path)
    if not path.exists():
        return
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is a folder or a device; give a file for {what}.")
    content = path.read_bytes()
    if content and not is_ours(content):
        raise UserError(
            f"{path} is another file, which {what} would replace; it stays as it is: give another "
            "path."
        )


def sweep_scratch(folder: epath.PathLike, names: str) -> None:
    """Delete what `replacing` left in a folder when it was killed: the scratch files of files whose
    names match a regular expression. For the folder's only writer."""
    folder = epath.Path(folder)
    # Earlier versions named those of large files by the process's id.
    left = re.compile(rf"\.(?:{names})\.([0-9a-f]{{8}}|\d{{1,7}})\.part")
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if left.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write `value` as indented, key-sorted JSON, atomically."""
    write_atomic(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def write_first(path: epath.PathLike, value: Any) -> None:
    """Write `value` as `write_json` does, unless the file is there: of several processes that
    write it at once, the first one wins, where the file system has links."""
    path = epath.Path(path)
    if path.exists():
        return
    if "://" in os.fspath(path):  # a bucket has no links
        write_json(path, value)
        return
    scratch = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            scratch.write_text(_json_text(value))
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        write_json(path, value)
    finally:
        scratch.unlink(missing_ok=True)


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
    """Write a `.npy` file, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def read_arrays(path: epath.PathLike, *names: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, those of these names or all.

    Raises `ValueError`, which names the kind of error, if it is missing, is no `.npz`, is damaged,
    or lacks one of them: damaged zip files make their readers raise errors of any type.
    """
    try:
        require_regular(path)
        with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except Exception as error:
        raise ValueError(type(error).__name__) from None


def map_array(path: epath.PathLike) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory.

    Raises `ValueError`, which names the kind of error, if it is missing, is no `.npy`, or is not as
    long as it says: a damaged header makes its readers raise errors of any type.
    """
    try:
        require_regular(path)
        array = np.lib.format.open_memmap(os.fspath(path), mode="r")  # `np.load` reads zips, too
    except Exception as error:
        raise ValueError(type(error).__name__) from None
    if array.offset + array.nbytes != os.stat(path).st_size:
        raise ValueError("another length than it says")
    return array


def read_json(path: epath.PathLike, what: str) -> Any:
    """Read a JSON file. `what` names it in the error, e.g. "the corpus manifest"."""
    path = epath.Path(path)
    try:
        return json.loads(decode_text(read_regular(path, None)))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what} is missing: {path} does not exist.") from None
    except RecursionError:
        raise UserError(f"{what} is damaged: {path} is nested too deep; make it again.") from None
    except OSError as error:
        raise UserError(f"{what} can't be read: {path} ({type(error).__name__}).") from None
    except ValueError as error:
        raise UserError(
            f"{what} is damaged: {path} is not JSON ({error}); make it again."
        ) from None


def read_json_lines(path: epath.PathLike) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The objects of a JSON Lines file in order, and the lines that are none, as they are.

    Both are empty where there is no file. A line that was cut off by a kill is among the latter; it
    has no newline at its end, which the others keep. Raises `UserError` for a pipe or a device,
    which might have no end.
    """
    path = epath.Path(path)
    objects, damaged = [], []
    for line in io.BytesIO(read_log(path)):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            objects.append(value)
        elif line.strip():
            damaged.append(line)
    return objects, damaged


def read_log(path: epath.PathLike) -> bytes:
    """The content of a log that grows line by line; nothing where there is no file, `UserError`
    where something else is in its place."""
    path = epath.Path(path)
    try:
        return read_regular(path, None) if path.exists() else b""
    except ValueError as error:
        raise UserError(f"{path} would be a log, but {error}; move it away.") from None


def digest(*parts: bytes | str | np.ndarray) -> str:
    """A short SHA-256 fingerprint of byte strings, texts and arrays (with dtype and shape)."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            content = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data  # without a copy
        else:
            # Names of files may hold bytes that are no UTF-8.
            content = memoryview(
                part.encode(errors="surrogatepass") if isinstance(part, str) else part
            )
        state.update(len(content).to_bytes(8, "little"))
        state.update(content)
    return state.hexdigest()[:16]
