"""Writing a memory bank: beside its place, shard by shard, and moved there when it is complete."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.array_records import Records
from cm3jax.io.files import digest
from cm3jax.io.folders import hold, sweep
from cm3jax.io.shard_writer import Files, Notes, ShardWriter, shard_files
from cm3jax.retrieval.bank_files import (
    COLUMNS,
    SAVED,
    SAVED_TRAINING,
    BankDocument,
    bank_files,
    content_hash,
    decode_document,
    encode,
    key_hash,
)
from cm3jax.retrieval.removed import Removed
from cm3jax.shapes import Float

DocumentBatch = tuple[Sequence[BankDocument], Float[np.ndarray, "M E"]]
"""Some documents and their unit vectors."""
_SOURCE = "source"
_PART = "part"
"""Where a bank is written in one go."""


class BankWriter:
    """Writes a bank shard by shard, and goes on where an earlier one stopped.

    The shards gather in a hidden directory beside `path`; the bank that is there, if any, is
    replaced when the new one is complete. Whoever makes the shards leaves out what was taken out of
    the bank (`removed`), and holds `path` meanwhile.
    """

    def __init__(
        self,
        path: epath.PathLike,
        made_from: str,
        encoder_fingerprint: str,
        vocab_fingerprint: str,
        parts: str = "parts",
        states: Sequence[str] = (),
    ):
        """`made_from` and `states` are those of `ShardWriter`."""
        self.path = epath.Path(path)
        self.removed = Removed.of(path)
        self._made = {"encoder": encoder_fingerprint, "vocab": vocab_fingerprint}
        self._shards = ShardWriter(path, made_from, bank_files, parts, states)

    def require_ours(self) -> None:
        """Raise `UserError` where something of somebody else's would be written over."""
        self._shards.require_ours("a memory bank")
        for name in (SAVED, SAVED_TRAINING):
            place = self.path / name
            if place.exists() and not place.is_dir():
                raise UserError(f"{place} is a file where the saved index goes; move it away.")

    def has(self, number: int) -> bool:
        """Whether a shard was written."""
        return self._shards.has(number)

    def outdated(self) -> list[tuple[int, np.ndarray]]:
        """The shards whose raw records have changed since, with what they were (`source`)."""
        return self._shards.outdated(_SOURCE)

    def write(
        self,
        number: int,
        documents: Sequence[BankDocument],
        vectors: Float[np.ndarray, "M E"],
        refused: dict[str, str] | None = None,
        source: np.ndarray | None = None,
    ) -> None:
        """Write one shard of documents and their unit vectors.

        `refused` are the keys of records that are no part of it, with the reason; `source` is the
        state of all raw records that it was made from, for later comparison.
        """
        facts = [
            (
                *(len(d.ids), d.has_text, d.has_image, d.held_out),
                *(key_hash(d.key), content_hash(d.ids), len(d.pictures)),
            )
            for d in documents
        ]
        pictures = [int(picture, 16) for d in documents for picture in d.pictures]
        columns = {
            "columns": np.asarray(facts, COLUMNS),
            "vectors": np.asarray(vectors, np.float32),
            "pictures": np.asarray(pictures, np.uint64),
        }
        if source is not None:
            columns[_SOURCE] = source
        notes = {
            "sources": Counter(document.source for document in documents),
            "licences": Counter(document.licence for document in documents),
            "refused": refused or {},
        }
        self._shards.write(number, map(encode, documents), columns, notes)

    def records(self, shards: int) -> int:
        """Documents in the shards that are written."""
        return self._shards.records(shards)

    def finish(self, shards: int, facts: dict[str, Any] | None = None) -> None:
        """Join the shards and move the bank to its place.

        The manifest also holds `facts`. Raises `UserError` on a key that occurs twice.
        """
        known = ("columns", "vectors", "pictures", _SOURCE)
        self._shards.finish(
            shards,
            [c for c in known if (self._shards.parts / f"{c}-00000.npy").exists()],
            lambda *about: self._manifest(*about) | (facts or {}),
        )

    def discard(self) -> None:
        """Delete what was written."""
        self._shards.discard()

    def _manifest(self, notes: list[Notes], files: Files) -> dict[str, Any]:
        columns = np.load(self._shards.parts / "columns.npy", mmap_mode="r")
        self._require_unique(columns["key"], notes)
        both = columns["has_text"] & columns["has_image"]
        content = {name: file for name, file in files.items() if name != f"{_SOURCE}.npy"}
        sums = [file["sha256"] for _, file in sorted(content.items())]
        totals = {
            name: dict(sum((Counter(note[name]) for note in notes), Counter[str]()))
            for name in ("sources", "licences")
        }
        return {
            **self._made,
            **totals,
            "documents": len(columns),
            "counts": {
                "pairs": int(both.sum()),
                "texts": int((columns["has_text"] & ~both).sum()),
                "pictures": int((columns["has_image"] & ~both).sum()),
            },
            "refused": dict(item for note in notes for item in note["refused"].items()),
            "fingerprint": digest(*self._made.values(), *sums),
            **({"removed": dataclasses.asdict(self.removed)} if self.removed else {}),
        }

    def _require_unique(self, hashes: np.ndarray, notes: list[Notes]) -> None:
        """Raise `UserError` if a key occurs twice; records are read where hashes are equal."""
        values, counts = np.unique(hashes, return_counts=True)
        rows = np.flatnonzero(np.isin(hashes, values[counts > 1]))
        sizes = {note["name"]: note["records"] for note in notes}
        records = Records(self._shards.parts, sizes, "prepare it again")
        seen = set()
        for key in (decode_document(records[int(row)]).key for row in rows):
            if key in seen:
                raise UserError(f"two documents have the key {key!r}; keys must be unique.")
            seen.add(key)


def write_bank(
    path: epath.PathLike,
    parts: Iterable[DocumentBatch],
    encoder_fingerprint: str,
    vocab_fingerprint: str,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write a bank of parts, in order, in one go, and at the end replace what is at `path`.

    Raises `UserError` on a key that occurs twice, and where a folder is not a bank's.
    """
    with hold(path, "writing a memory bank"):
        made_from = (facts or {}).get("made_from", "")
        writer = BankWriter(path, made_from, encoder_fingerprint, vocab_fingerprint, _PART)
        writer.require_ours()
        sweep_parts(path)
        try:
            count = 0
            for number, part in enumerate(parts):
                writer.write(number, *part)
                count = number + 1
            writer.finish(count, facts)
        finally:
            writer.discard()


def require_writable(path: epath.PathLike) -> None:
    """Raise `UserError` where `write_bank` would refuse to write. To be called before any work."""
    BankWriter(path, "", "", "", _PART).require_ours()


def sweep_parts(path: epath.PathLike, also: str = "") -> None:
    """Delete what `write_bank` left beside a bank when it was killed, and also what matches the
    regular expression `also`. To be called under `hold`."""
    sweep(path, shard_files, r"(\d+\.)?part" + (f"|{also}" if also else ""))
