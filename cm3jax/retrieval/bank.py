"""The memory bank on disk: documents that can be retrieved, and their vectors.

    manifest.json                   fingerprints, counts, sources, licences, checksums
    documents-00000.array_record    one record per document: its ids and what is known of it
    columns.npy                     length and modalities of every document
    vectors.npy                     unit document vectors, float32 [M E]

A document is its row number; equal documents give equal bytes. A bank is written beside its place
and moved there when complete, and never changed: `remove` writes another one.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.checksums import describe
from cm3jax.errors import UserError
from cm3jax.files import digest, read_json, write_json
from cm3jax.records import Records, write_records
from cm3jax.shapes import Float, Int

_SHARD = 65_536
_COLUMNS = np.dtype([("length", "<i4"), ("has_text", "?"), ("has_image", "?"), ("held_out", "?")])
_ARRAYS = ("columns.npy", "vectors.npy")


@dataclasses.dataclass(frozen=True)
class BankDocument:
    """One document as the bank keeps it."""

    key: str
    """Unique name, e.g. of its raw record."""
    ids: Int[np.ndarray, " L"]
    """The rendered document in the vocabulary, without breaks around it."""
    text: str
    """Its text as a reader should see it; empty without one."""
    has_text: bool
    has_image: bool
    source: str
    licence: str
    subjects: tuple[str, ...] = ()
    """Names of what it shows, for audits; retrieval never reads them."""
    held_out: bool = False
    """Found at generation alone: training never sees it as a neighbour."""


class Bank:
    """A memory bank, opened for reading. Rows are read at random without loading the rest."""

    def __init__(self, path: epath.PathLike, manifest: dict[str, Any]):
        self.path = epath.Path(path)
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        # The last file holds what the others leave.
        names = sorted(name for name in manifest["files"] if name not in _ARRAYS)
        counts = [_SHARD] * (len(names) - 1)
        counts.append(manifest["documents"] - sum(counts))
        self._records = Records(
            self.path, dict(zip(names, counts, strict=True)), "build it again with launch.index"
        )
        self._columns = np.load(self.path / "columns.npy", mmap_mode="r")
        self.vectors: Float[np.ndarray, "M E"] = np.load(self.path / "vectors.npy", mmap_mode="r")

    @staticmethod
    def build(
        path: epath.PathLike,
        documents: Iterable[BankDocument],
        vectors: Float[np.ndarray, "M E"],
        encoder_fingerprint: str,
        vocab_fingerprint: str,
    ) -> "Bank":
        """Write a bank of `documents`, in order, replacing what stands at `path`.

        `vectors` are their unit vectors. Raises `ValueError` when the counts differ, `UserError`
        on a key that occurs twice.
        """
        path = epath.Path(path)
        scratch = path.parent / f".{path.name}.{os.getpid()}.part"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            manifest = _write_documents(scratch, documents, len(vectors))
            np.save(scratch / "vectors.npy", np.asarray(vectors, np.float32))
            manifest |= {"encoder": encoder_fingerprint, "vocab": vocab_fingerprint}
            manifest["files"] |= {name: describe(scratch / name) for name in _ARRAYS}
            sums = [file["sha256"] for _, file in sorted(manifest["files"].items())]
            manifest["fingerprint"] = digest(encoder_fingerprint, vocab_fingerprint, *sums)
            write_json(scratch / "manifest.json", manifest)
            if path.exists():
                path.rmtree()
            scratch.rename(path)
        finally:
            if scratch.exists():
                scratch.rmtree()
        return Bank.open(path)

    @staticmethod
    def open(
        path: epath.PathLike,
        encoder_fingerprint: str | None = None,
        vocab_fingerprint: str | None = None,
    ) -> "Bank":
        """Open a bank; given fingerprints must be those that it was made with.

        Raises `UserError` for a missing bank, a missing or truncated file, another encoder or
        another vocabulary.
        """
        path = epath.Path(path)
        manifest = read_json(path / "manifest.json", "the memory bank")
        made = {"encoder": encoder_fingerprint, "vocab": vocab_fingerprint}
        for what, wanted in made.items():
            if wanted is not None and wanted != manifest[what]:
                raise UserError(
                    f"the bank {path} was made with {what} {manifest[what]}, but this run has "
                    f"{what} {wanted}; use that one, or build the bank again with launch.index."
                )
        for name, file in manifest["files"].items():
            size = (path / name).stat().length if (path / name).exists() else None
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size} of {file['bytes']} bytes"
                raise UserError(
                    f"the bank's file {path / name} {found}; build it again with launch.index."
                )
        return Bank(path, manifest)

    def verify(self) -> None:
        """Read every file and compare checksums; `UserError` names the damaged one."""
        for name, file in self.manifest["files"].items():
            if describe(self.path / name) != file:
                raise UserError(
                    f"the bank's file {self.path / name} is damaged (its checksum differs); "
                    "build the bank again with launch.index."
                )

    def __len__(self) -> int:
        return len(self._columns)

    def ids(self, row: int) -> Int[np.ndarray, " L"]:
        """The vocabulary ids of one document, int32; `IndexError` outside the bank, `UserError` if
        it is damaged."""
        return _ids(self._records[row])

    def meta(self, row: int) -> BankDocument:
        """All that the bank keeps of one document; `IndexError` outside the bank."""
        return _decode(self._records[row])

    def documents(self) -> Iterable[BankDocument]:
        """Every document, in order."""
        return map(_decode, self._records)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of every key; reads the whole bank once."""
        return {document.key: row for row, document in enumerate(self.documents())}

    @property
    def lengths(self) -> Int[np.ndarray, " M"]:
        """Ids of every document."""
        return self._columns["length"]

    @property
    def has_text(self) -> np.ndarray:
        """Which documents have a text, bool [M]."""
        return self._columns["has_text"]

    @property
    def has_image(self) -> np.ndarray:
        """Which documents have a picture, bool [M]."""
        return self._columns["has_image"]

    @property
    def held_out(self) -> np.ndarray:
        """Which documents are kept from training, bool [M]."""
        return self._columns["held_out"]


def require_keys(bank: Bank, keys: Sequence[str]) -> None:
    """Raise `UserError` for a key that the bank does not have."""
    unknown = [key for key in keys if key not in bank.rows]
    if unknown:
        raise UserError(
            f"the bank {bank.path} has no document {unknown[0]!r}; nothing was removed."
        )


def remove(bank: Bank, keys: Sequence[str]) -> Bank:
    """Write the bank again without these documents: their text, codes and vectors are gone.

    Rows move, so neighbours prepared for the old bank don't fit the new one (its fingerprint
    says so). Raises `UserError` for a key that is not there.
    """
    require_keys(bank, keys)
    gone = {bank.rows[key] for key in keys}
    kept = [row for row in range(len(bank)) if row not in gone]
    documents = (document for row, document in enumerate(bank.documents()) if row not in gone)
    made = bank.manifest["encoder"], bank.manifest["vocab"]
    return Bank.build(bank.path, documents, bank.vectors[kept], *made)


def _write_documents(
    directory: epath.Path, documents: Iterable[BankDocument], count: int
) -> dict[str, Any]:
    """Write shards and columns; the manifest's counts and shard files."""
    columns, keys = np.zeros(count, _COLUMNS), set()
    sources, licences, files = Counter(), Counter(), {}
    rows = iter(documents)

    def encoded(first: int) -> Iterator[bytes]:
        for row, document in enumerate(itertools.islice(rows, _SHARD), start=first):
            if document.key in keys:
                raise UserError(
                    f"two documents have the key {document.key!r}; keys must be unique."
                )
            if row >= count:
                raise ValueError(f"there are more documents than the {count} vectors")
            keys.add(document.key)
            columns[row] = (
                len(document.ids),
                document.has_text,
                document.has_image,
                document.held_out,
            )
            sources[document.source] += 1
            licences[document.licence] += 1
            yield _encode(document)

    for first in range(0, max(count, 1), _SHARD):
        name = f"documents-{first // _SHARD:05d}.array_record"
        write_records(directory / name, encoded(first))
        files[name] = describe(directory / name)
    if len(keys) != count or next(rows, None) is not None:
        raise ValueError(f"there are {count} vectors for another number of documents")
    np.save(directory / "columns.npy", columns)
    both = columns["has_text"] & columns["has_image"]
    counts = {
        "pairs": int(both.sum()),
        "texts": int((columns["has_text"] & ~both).sum()),
        "pictures": int((columns["has_image"] & ~both).sum()),
    }
    return {
        "documents": count,
        "counts": counts,
        "sources": dict(sources),
        "licences": dict(licences),
        "files": files,
    }


def _encode(document: BankDocument) -> bytes:
    """uint32 number of ids, the ids, the rest as JSON."""
    ids = np.ascontiguousarray(document.ids, "<i4")
    rest = {
        field.name: getattr(document, field.name)
        for field in dataclasses.fields(document)
        if field.name != "ids"
    }
    text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return np.uint32(len(ids)).astype("<u4").tobytes() + ids.tobytes() + text.encode()


def _ids(record: bytes) -> Int[np.ndarray, " L"]:
    count = int(np.frombuffer(record, "<u4", 1)[0])
    return np.frombuffer(record, "<i4", count, offset=4)


def _decode(record: bytes) -> BankDocument:
    ids = _ids(record)
    rest = json.loads(record[4 + ids.nbytes :])
    return BankDocument(**rest | {"ids": ids, "subjects": tuple(rest["subjects"])})
