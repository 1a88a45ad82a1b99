"""Checksums of files, and of whole directories by a manifest inside them."""

import concurrent.futures
import hashlib
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_json, write_json

MANIFEST = "checksums.json"


def file_entry(path: epath.PathLike) -> dict[str, Any]:
    """Size and SHA-256 of a file: `{"bytes": ..., "sha256": ...}`."""
    path = epath.Path(path)
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().length, "sha256": checksum}


def seal(directory: epath.PathLike, without: tuple[str, ...] = ()) -> None:
    """Write the manifest of all files below a directory but those named `without`."""
    root = epath.Path(directory)
    names = [name for name in _files(root) if name not in (MANIFEST, *without)]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        entries = dict(
            zip(names, pool.map(lambda name: file_entry(root / name), names), strict=True)
        )
    write_json(root / MANIFEST, entries)


def fault(directory: epath.PathLike) -> str | None:
    """What is wrong with a sealed directory, its first bad file named; None if nothing is."""
    root = epath.Path(directory)
    try:
        entries = read_json(root / MANIFEST, "the list of checksums")
    except UserError as error:
        return str(error).rstrip(".")

    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        return f"{MANIFEST} is not a list of checksums"

    def check(name: str) -> str | None:
        path, wanted = root / name, entries[name]
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != wanted.get("bytes"):
            return f"{name} has {path.stat().length} of {wanted.get('bytes')} bytes"
        return None if file_entry(path) == wanted else f"{name} has another checksum"

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return next((found for found in pool.map(check, sorted(entries)) if found), None)


def _files(root: epath.Path) -> list[str]:
    """Relative names of all files below `root`."""
    names, waiting = [], [root]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir():
                waiting.append(path)
            else:
                names.append(str(path.relative_to(root)))
    return names
