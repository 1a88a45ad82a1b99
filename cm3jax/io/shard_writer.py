"""A directory of records, written shard by shard beside its place and moved there complete.

    NAME-00000.array_record         the records of one shard
    COLUMN.npy                      an array per column over all shards
    manifest.json                   what the writer says of it, and size and checksum of every file

While it is being made, in `.NAME.parts`, each shard has its columns and its notes in files of their
own. The notes come last and make a shard count, so that work that was killed is done again and
nothing else is. What stood in its place is readable until then (`cm3jax.io.folders`).
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.array_records import write_records
from cm3jax.io.checksums import file_entry
from cm3jax.io.files import digest, map_array, naming, write_json
from cm3jax.io.folders import Recognised, delete, hold, require_ours, require_scratch, scratch, swap
from cm3jax.io.paths import matching, require_unicode_path
from cm3jax.io.typed_json import fits, read_fields

Notes = dict[str, Any]
"""What is known of one shard: `name`, `records`, `file`, and what its writer adds."""
Files = dict[str, dict[str, Any]]
"""Size and checksum by file name."""
MANIFEST = "manifest.json"
STATE = "source_state"
"""What a manifest calls the hash of the raw records that the whole is made from."""
_FILES = dict[str, Any]
_WHOLE = {"files": _FILES, "records": int}
_SHARD = {
    **{"name": str, "records": int, "file": dict[str, Any]},
    "columns": dict[str, int] | None,
}
"""What a manifest and a shard's notes hold for certain."""
_WHILE_MADE = re.compile(
    r"documents-\d{5,}\.array_record|shard-\d{5,}\.json|"
    r"(columns|vectors|pictures|source|lengths|neighbours|scores|answers)(-\d{5,})?\.npy|"
    r"\.(documents-\d{5,}\.array_record|[a-z]+(-\d{5,})?(\.npy|\.json)?)\.[0-9a-f]+\.part"
)
"""Names of the files that are written on the way to a complete directory, and of half a file."""


def source_state(states: Sequence[str]) -> str:
    """The state of all raw records from those of the shards."""
    return digest(*states)


def shard_files(folder: epath.Path) -> list[str] | None:
    """The files in a folder that a `ShardWriter` wrote, those that show it last: its manifest or,
    among parts, records. None if nothing shows it, or the manifest is another's: a `vectors.npy`
    may be anybody's."""
    if not folder.is_dir():
        return None
    found = [path.name for path in folder.iterdir() if _WHILE_MADE.fullmatch(path.name)]
    if not (folder / MANIFEST).exists():
        found.sort(key=_is_of_records)
        return found if any(map(_is_of_records, found)) else None
    manifest = _sound_manifest(folder)
    files = manifest.get("files")
    if not {"made_from", "encoder"} & manifest.keys() or not isinstance(files, dict):
        return None
    if not fits(files, dict[str, dict[str, Any]]):
        return None
    if not all("bytes" in file for file in files.values()):
        return None
    return list(dict.fromkeys([*found, *files, MANIFEST]))


def _is_of_records(name: str) -> bool:
    return ".array_record" in name


def manifest_has(folder: epath.Path, field: str) -> bool:
    """Whether a sound manifest is in a folder and has a field."""
    return field in _sound_manifest(folder)


def _sound_manifest(folder: epath.Path) -> dict[str, Any]:
    """The manifest in a folder, empty without a sound one: whatever is there, nothing is raised
    or waited for."""
    try:
        return read_fields(folder / MANIFEST, {}, "the manifest")
    except UserError:
        return {}


def read_manifest(
    folder: epath.Path, what: str, fields: Mapping[str, Any], remedy: str
) -> dict[str, Any]:
    """The manifest of a complete directory, with `fields` of these types, e.g. `dict[str, int]`.

    Raises `UserError` where it is missing or damaged, and for a file of its list that is missing or
    cut off; `what` names the directory, e.g. "the bank", and `remedy` says what to do.
    """
    known = {"files": dict[str, dict[str, Any]], **fields}
    manifest = read_fields(folder / MANIFEST, known, what, remedy)
    for name, file in manifest["files"].items():
        size = _size(folder / name)
        if size != file.get("bytes"):
            found = "is missing" if size is None else f"has {size} of {file.get('bytes')} bytes"
            raise UserError(f"{what}'s file {folder / name} {found}; {remedy}.")
    return manifest


def _size(path: epath.Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return path.stat().length if path.exists() else None


def load_column(
    path: epath.Path, what: str, remedy: str, *dtypes: npt.DTypeLike, axes: int = 1
) -> np.ndarray:
    """A column of one of some types, with this many axes, mapped into memory; `UserError` if it is
    damaged."""
    try:
        column = map_array(path)
        if column.dtype not in [np.dtype(one) for one in dtypes] or column.ndim != axes:
            raise ValueError(f"it holds {column.dtype} of {column.ndim} axes")
    except ValueError as error:
        raise UserError(f"{what}'s file {path} is damaged ({error}); {remedy}.") from None
    return column


class ShardWriter:
    """Writes shards in any order, from any number of processes, joins them and moves the whole to
    `path`.

    `made_from` identifies all settings that decide the content, and `states` the raw records that
    each shard is made from, where they can change: shards made from something else count as
    missing. `recognised` says which files at `path` are ours, and go when it is replaced;
    `parts` names the hidden directory where the shards gather. Whoever makes shards holds `path`
    (`cm3jax.io.folders.hold`).
    """

    def __init__(
        self,
        path: epath.PathLike,
        made_from: str,
        recognised: Recognised = shard_files,
        parts: str = "parts",
        states: Sequence[str] = (),
    ):
        self.path = epath.Path(path)
        self.parts = scratch(path, parts)
        self._parts = parts
        self.made_from = made_from
        self._recognised = recognised
        self._states = states

    def require_ours(self, what: str) -> None:
        """Raise `UserError` where something of somebody else's would be written over, or where
        nothing can be written."""
        require_unicode_path(self.path, what)
        require_ours(self.path, self._recognised, what)
        require_scratch(self.path, shard_files, [self._parts])
        require_scratch(self.path, self._recognised)

    @property
    def complete(self) -> bool:
        """Whether the complete directory is in its place."""
        return self._stands(self.path)

    @property
    def joined(self) -> bool:
        """Whether the directory is complete, but its writer was killed before moving it to its
        place.
        """
        return self._stands(self.parts)

    def _stands(self, folder: epath.Path) -> bool:
        path = folder / MANIFEST
        if not path.exists():
            return False
        try:
            manifest = read_fields(path, _WHOLE, "the manifest")
        except UserError:  # what is damaged is made again
            return False
        state = source_state(self._states)
        # Earlier versions did not look at what they were made from.
        unchanged = manifest.get(STATE, state) == state
        return manifest.get("made_from") == self.made_from and unchanged

    def has(self, number: int) -> bool:
        """Whether a shard was written."""
        path = self._notes(number)
        if self.joined or not path.exists():
            return self.joined
        try:
            notes = self._read_notes(number)
        except UserError:  # what is damaged is made again
            return False
        made = notes.get("made_from"), notes.get("state")
        # Earlier versions did not note the columns.
        sizes = {notes["name"]: notes["file"].get("bytes"), **(notes.get("columns") or {})}
        whole = all(_size(self.parts / name) == size for name, size in sizes.items())
        return whole and made == (self.made_from, self._state(number))

    def outdated(self, column: str) -> list[tuple[int, np.ndarray]]:
        """The shards that were written by these settings of raw records that have changed since,
        by number, each with what a column of it holds."""
        found = []
        for number in range(len(self._states)):
            try:
                notes = self._read_notes(number)
                ours = notes.get("made_from") == self.made_from
                if ours and notes.get("state") not in ("", self._state(number)):
                    found.append((number, np.array(map_array(self._column(column, number)))))
            except ValueError:  # not there, or damaged
                continue
        return found

    def write(
        self,
        number: int,
        records: Iterable[bytes],
        columns: Mapping[str, np.ndarray],
        notes: Mapping[str, Any],
    ) -> None:
        """Write one shard, its first column having a row per record."""
        self.parts.mkdir(parents=True, exist_ok=True)
        (self.parts / MANIFEST).unlink(missing_ok=True)
        self._notes(number).unlink(missing_ok=True)  # killed now, what it was must not count
        kept = {self._column(column, number).name for column in columns}
        for left in matching(self.parts, f"*-{number:05d}.npy"):
            if left.name not in kept and _WHILE_MADE.fullmatch(left.name):  # of other settings
                left.unlink()
        name = f"documents-{number:05d}.array_record"
        half = self.parts / f".{name}.{os.getpid()}.part"
        write_records(half, records)
        half.replace(self.parts / name)
        sizes = {}
        for column, values in columns.items():
            with naming(self._column(column, number)):
                # Not into the file itself: there numpy makes a TypeError of Ctrl-C.
                buffer = io.BytesIO()
                np.save(buffer, values)
                sizes[self._column(column, number).name] = len(buffer.getbuffer())
                self._column(column, number).write_bytes(buffer.getbuffer())
        rows = len(next(iter(columns.values())))
        facts = {"name": name, "records": rows, "file": file_entry(self.parts / name)}
        facts |= {"made_from": self.made_from, "state": self._state(number), "columns": sizes}
        write_json(self._notes(number), {**notes, **facts})

    def records(self, shards: int) -> int:
        """Records in all shards, which must be written."""
        if self.joined:
            return self._joined_manifest()["records"]
        return sum(self._read_notes(number)["records"] for number in range(shards))

    def finish(
        self,
        shards: int,
        columns: Iterable[str],
        describe_all: Callable[[list[Notes], Files], dict],
    ) -> None:
        """Join the columns of all shards, write the manifest and move the whole to its place.

        `describe_all` says of the shards' notes and of all files what the manifest holds beside
        them. Scraps of work that was killed, and shards of an earlier content, are deleted.
        """
        if not self.joined:
            self._join_all(shards, columns, describe_all)
        kept = {MANIFEST, *self._joined_manifest()["files"]}
        for name in set(shard_files(self.parts) or ()) - kept:
            (self.parts / name).unlink(missing_ok=True)
        with hold(self.path, "replacing it"):
            swap(self.parts, self.path, self._recognised)

    def discard(self) -> None:
        """Delete what was written and is not in its place."""
        delete(self.parts, shard_files)

    def _join_all(
        self,
        shards: int,
        columns: Iterable[str],
        describe_all: Callable[[list[Notes], Files], dict],
    ) -> None:
        notes = [self._read_notes(number) for number in range(shards)]
        files = {note["name"]: note["file"] for note in notes}
        for column in columns:
            self._join(column, shards)
            files[f"{column}.npy"] = file_entry(self.parts / f"{column}.npy")
        whole = {
            **describe_all(notes, files),
            "made_from": self.made_from,
            **({STATE: source_state(self._states)} if self._states else {}),
            "records": sum(note["records"] for note in notes),
            "shards": {note["name"]: note["records"] for note in notes},
            "files": files,
        }
        write_json(self.parts / MANIFEST, whole)

    def _join(self, column: str, shards: int) -> None:
        """One file of all shards' rows, a shard at a time, as `numpy.save` would write it."""
        paths = [self._column(column, number) for number in range(shards)]
        first = np.load(paths[0], mmap_mode="r")
        rows = sum(len(np.load(path, mmap_mode="r")) for path in paths)
        header = np.lib.format.header_data_from_array_1_0(first)
        header["shape"] = (rows, *first.shape[1:])
        half = self.parts / f".{column}.{os.getpid()}.part"
        with naming(self.parts / f"{column}.npy"), half.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                file.write(np.load(path).tobytes())
        half.replace(self.parts / f"{column}.npy")

    def _state(self, number: int) -> str:
        return self._states[number] if number < len(self._states) else ""

    def _joined_manifest(self) -> dict[str, Any]:
        return read_fields(self.parts / MANIFEST, _WHOLE, "the manifest")

    def _read_notes(self, number: int) -> Notes:
        return read_fields(self._notes(number), _SHARD, "a shard's notes")

    def _notes(self, number: int) -> epath.Path:
        return self.parts / f"shard-{number:05d}.json"

    def _column(self, column: str, number: int) -> epath.Path:
        return self.parts / f"{column}-{number:05d}.npy"
