"""A directory of records that is written shard by shard, and complete once its manifest stands.

    NAME-00000.array_record         the records of one shard
    COLUMN.npy                      an array per column, one row per record, over all shards
    manifest.json                   what the writer says of it, and size and checksum of every file

While it is being made, each shard has its columns and its notes in files of their own. The notes
come last and make a shard count, so that work that was killed is done again and nothing else is.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from cm3jax.checksums import describe
from cm3jax.files import read_json, write_json
from cm3jax.records import write_records

Notes = dict[str, Any]
"""What is known of one shard: `name`, `records`, `file`, and what its writer adds."""
Files = dict[str, dict[str, Any]]
"""Size and checksum by file name."""
MANIFEST = "manifest.json"


class ShardWriter:
    """Writes shards in any order, from any number of processes, and joins them.

    `made_from` identifies everything that decides the content: shards made from something else
    count as missing.
    """

    def __init__(self, path: epath.PathLike, made_from: str):
        self.path = epath.Path(path)
        self.made_from = made_from

    @property
    def complete(self) -> bool:
        """Whether the whole stands."""
        path = self.path / MANIFEST
        return path.exists() and read_json(path, "the manifest").get("made_from") == self.made_from

    def has(self, number: int) -> bool:
        """Whether a shard was written."""
        path = self._notes(number)
        return path.exists() and read_json(path, "a shard's notes")["made_from"] == self.made_from

    def write(
        self,
        number: int,
        records: Iterable[bytes],
        columns: Mapping[str, np.ndarray],
        notes: Mapping[str, Any],
    ) -> None:
        """Write one shard, its columns having a row per record."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)
        name = f"documents-{number:05d}.array_record"
        scratch = self.path / f".{name}.{os.getpid()}.part"
        write_records(scratch, records)
        scratch.replace(self.path / name)
        for column, values in columns.items():
            np.save(self._column(column, number), values)
        rows = len(next(iter(columns.values())))
        facts = {"name": name, "records": rows, "file": describe(self.path / name)}
        write_json(self._notes(number), {**notes, **facts, "made_from": self.made_from})

    def records(self, shards: int) -> int:
        """Records in all shards, which must be written."""
        if self.complete:
            return read_json(self.path / MANIFEST, "the manifest")["records"]
        return sum(read_json(self._notes(n), "a shard's notes")["records"] for n in range(shards))

    def finish(
        self,
        shards: int,
        columns: Iterable[str],
        describe_all: Callable[[list[Notes], Files], dict],
    ) -> None:
        """Join the columns of all shards and write the manifest.

        `describe_all` says of the shards' notes and of all files what the manifest holds beside
        them. Whatever else lies in the directory is deleted: scraps of work that was killed, and
        shards of an earlier content.
        """
        notes = [read_json(self._notes(number), "a shard's notes") for number in range(shards)]
        files = {note["name"]: note["file"] for note in notes}
        for column in columns:
            self._join(column, shards)
            files[f"{column}.npy"] = describe(self.path / f"{column}.npy")
        whole = {
            **describe_all(notes, files),
            "made_from": self.made_from,
            "records": sum(note["records"] for note in notes),
            "shards": {note["name"]: note["records"] for note in notes},
            "files": files,
        }
        write_json(self.path / MANIFEST, whole)
        self.tidy()

    def tidy(self) -> None:
        """Delete every file that the manifest does not name."""
        kept = {MANIFEST, *read_json(self.path / MANIFEST, "the manifest")["files"]}
        for path in self.path.iterdir():
            if path.name not in kept and path.is_file():
                path.unlink()

    def _join(self, column: str, shards: int) -> None:
        """One file of all shards' rows, a shard at a time, as `numpy.save` would write it."""
        paths = [self._column(column, number) for number in range(shards)]
        first = np.load(paths[0], mmap_mode="r")
        rows = sum(len(np.load(path, mmap_mode="r")) for path in paths)
        header = np.lib.format.header_data_from_array_1_0(first)
        header["shape"] = (rows, *first.shape[1:])
        scratch = self.path / f".{column}.{os.getpid()}.part"
        with scratch.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                file.write(np.load(path).tobytes())
        scratch.replace(self.path / f"{column}.npy")

    def _notes(self, number: int) -> epath.Path:
        return self.path / f"shard-{number:05d}.json"

    def _column(self, column: str, number: int) -> epath.Path:
        return self.path / f"{column}-{number:05d}.npy"
