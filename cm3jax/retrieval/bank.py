"""The memory bank on disk: documents that can be retrieved, and their vectors.

    manifest.json                   fingerprints, counts, sources, licences, checksums
    documents-00000.array_record    one record per document: its ids and what is known of it
    columns.npy                     length and modalities of every document
    vectors.npy                     unit document vectors, float32 [M E]

A document is its row number; equal documents give equal bytes. A bank is written beside its place
and moved there when complete, and never changed: `remove` and `merge` write another one.
"""

import dataclasses
import functools
import hashlib
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
from cm3jax.records import Records
from cm3jax.shapes import Bool, Float, Int
from cm3jax.shards import Files, Notes, ShardWriter

_SHARD = 65_536
_COLUMNS = np.dtype(
    [
        *(("length", "<i4"), ("has_text", "?"), ("has_image", "?"), ("held_out", "?")),
        *(("key", "<u8"), ("content", "<u8")),
    ]
)

Part = tuple[Sequence["BankDocument"], Float[np.ndarray, "M E"]]
"""Some documents and their unit vectors."""


@dataclasses.dataclass(frozen=True, eq=False)
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
    hash: str = ""
    """Of the raw record's content."""


class Bank:
    """A memory bank, opened for reading. Rows are read at random without loading the rest."""

    def __init__(self, path: epath.PathLike, manifest: dict[str, Any]):
        self.path = epath.Path(path)
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        self._records = Records(self.path, manifest["shards"], "build it again with launch.index")
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
        rows, rest = iter(documents), len(vectors)

        def parts() -> Iterator[Part]:
            for first in range(0, max(rest, 1), _SHARD):
                part = vectors[first : first + _SHARD]
                taken = list(itertools.islice(rows, len(part)))
                if len(taken) < len(part) or (first + len(part) == rest and next(rows, None)):
                    raise ValueError(f"there are {rest} vectors for another number of documents")
                yield taken, part

        return write_bank(path, parts(), encoder_fingerprint, vocab_fingerprint)

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
        if "shards" not in manifest:
            raise UserError(
                f"the bank {path} was made by an earlier version; build it again with launch.index."
            )
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

    def parts(self, kept: Bool[np.ndarray, " M"]) -> Iterator[Part]:
        """The documents of these rows with their vectors, a shard's worth at a time."""
        for first in range(0, max(len(self), 1), _SHARD):
            rows = first + np.flatnonzero(kept[first : first + _SHARD])
            yield [self.meta(int(row)) for row in rows], np.asarray(self.vectors[rows])

    @property
    def content(self) -> np.ndarray:
        """A hash of every document's ids, uint64 [M]: equal for copies."""
        return self._columns["content"]

    @property
    def key_hashes(self) -> np.ndarray:
        """A hash of every document's key, uint64 [M]."""
        return self._columns["key"]

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


class BankWriter:
    """Writes a bank shard by shard, and goes on where an earlier one stopped.

    The shards gather in a hidden directory beside `path`; the bank that stands there, if any, is
    replaced when the new one is complete.
    """

    def __init__(
        self,
        path: epath.PathLike,
        made_from: str,
        encoder_fingerprint: str,
        vocab_fingerprint: str,
        scratch: str = "parts",
    ):
        self.path = epath.Path(path)
        self._made = {"encoder": encoder_fingerprint, "vocab": vocab_fingerprint}
        self._shards = ShardWriter(self.path.parent / f".{self.path.name}.{scratch}", made_from)

    def has(self, number: int) -> bool:
        """Whether a shard was written."""
        return self._shards.complete or self._shards.has(number)

    def write(
        self,
        number: int,
        documents: Sequence[BankDocument],
        vectors: Float[np.ndarray, "M E"],
        refused: dict[str, str] | None = None,
    ) -> None:
        """Write one shard of documents and their unit vectors.

        `refused` are the keys of records that are no part of it, with the reason.
        """
        facts = [
            (len(d.ids), d.has_text, d.has_image, d.held_out, key_hash(d.key), content_hash(d.ids))
            for d in documents
        ]
        columns = {
            "columns": np.asarray(facts, _COLUMNS),
            "vectors": np.asarray(vectors, np.float32),
        }
        notes = {
            "sources": Counter(document.source for document in documents),
            "licences": Counter(document.licence for document in documents),
            "refused": refused or {},
        }
        self._shards.write(number, map(_encode, documents), columns, notes)

    def records(self, shards: int) -> int:
        """Documents in the shards that are written."""
        return self._shards.records(shards)

    def finish(self, shards: int, facts: dict[str, Any] | None = None) -> Bank:
        """Join the shards, move the bank to its place and open it.

        The manifest also holds `facts`. Raises `UserError` on a key that occurs twice.
        """
        if self._shards.complete:  # and killed before it was in its place
            self._shards.tidy()
        else:
            self._shards.finish(
                shards,
                ("columns", "vectors"),
                lambda *about: self._manifest(*about) | (facts or {}),
            )
        if self.path.exists():
            self.path.rmtree()
        self._shards.path.rename(self.path)
        return Bank.open(self.path)

    def discard(self) -> None:
        """Delete what was written."""
        if self._shards.path.exists():
            self._shards.path.rmtree()

    def _manifest(self, notes: list[Notes], files: Files) -> dict[str, Any]:
        columns = np.load(self._shards.path / "columns.npy", mmap_mode="r")
        self._require_unique(columns["key"], notes)
        both = columns["has_text"] & columns["has_image"]
        sums = [file["sha256"] for _, file in sorted(files.items())]
        totals = {
            name: dict(sum((Counter(note[name]) for note in notes), Counter()))
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
        }

    def _require_unique(self, hashes: np.ndarray, notes: list[Notes]) -> None:
        """Raise `UserError` if a key stands twice; records are read where hashes are equal."""
        values, counts = np.unique(hashes, return_counts=True)
        rows = np.flatnonzero(np.isin(hashes, values[counts > 1]))
        sizes = {note["name"]: note["records"] for note in notes}
        records = Records(self._shards.path, sizes, "prepare it again")
        seen = set()
        for key in (_decode(records[int(row)]).key for row in rows):
            if key in seen:
                raise UserError(f"two documents have the key {key!r}; keys must be unique.")
            seen.add(key)


def write_bank(
    path: epath.PathLike,
    parts: Iterable[Part],
    encoder_fingerprint: str,
    vocab_fingerprint: str,
    facts: dict[str, Any] | None = None,
) -> Bank:
    """Write a bank of parts, in order, in one go, replacing what stands at `path` at the end.

    Raises `UserError` on a key that occurs twice.
    """
    made = (encoder_fingerprint, vocab_fingerprint)
    made_from = (facts or {}).get("made_from", "")
    writer = BankWriter(path, made_from, *made, scratch=f"{os.getpid()}.part")
    try:
        count = 0
        for number, part in enumerate(parts):
            writer.write(number, *part)
            count = number + 1
        return writer.finish(count, facts)
    finally:
        writer.discard()


def key_hash(key: str) -> int:
    """64 bits of a document's key."""
    return _hash64(key.encode())


def content_hash(ids: Int[np.ndarray, " L"]) -> int:
    """64 bits of a document's ids: copies have the same."""
    return _hash64(np.ascontiguousarray(ids, "<i4").tobytes())


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@dataclasses.dataclass(frozen=True)
class Removed:
    """What was taken out of a bank and stays out: documents by key, by source, by licence."""

    keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()

    def covers(self, key: str, source: str, licence: str) -> bool:
        """Whether a document must not be in the bank."""
        return key in self._keys or source in self.sources or licence in self.licences

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.keys)

    def __or__(self, other: "Removed") -> "Removed":
        """What either takes out."""
        fields = (field.name for field in dataclasses.fields(self))
        return Removed(
            **{f: tuple(sorted({*getattr(self, f), *getattr(other, f)})) for f in fields}
        )

    @staticmethod
    def of(bank: epath.PathLike) -> "Removed":
        """What was taken out of the bank at a path."""
        file = _removed_file(bank)
        if not file.exists():
            return Removed()
        value = read_json(file, "the list of removed documents")
        if isinstance(value, list):  # an earlier version's, of keys alone
            return Removed(tuple(value))
        return Removed(**{name: tuple(entries) for name, entries in value.items()})

    def save(self, bank: epath.PathLike) -> None:
        """Remember it beside the bank, which is replaced as a whole."""
        write_json(_removed_file(bank), dataclasses.asdict(self))


def _removed_file(bank: epath.PathLike) -> epath.Path:
    path = epath.Path(bank)
    return path.parent / f"{path.name}-removed.json"


def require_there(bank: Bank, removed: Removed) -> None:
    """Raise `UserError` for a key, a source or a licence that no document of the bank has."""
    hashes = set(bank.key_hashes.tolist())
    there = {
        "document": (removed.keys, lambda key: key_hash(key) in hashes),
        "source": (removed.sources, bank.manifest["sources"].__contains__),
        "licence": (removed.licences, bank.manifest["licences"].__contains__),
    }
    for what, (names, known) in there.items():
        for name in names:
            if not known(name):
                raise UserError(
                    f"the bank {bank.path} has no {what} {name!r}; nothing was removed."
                )


def remove(bank: Bank, removed: Removed, made_from: str = "") -> Bank:
    """Write the bank again without these documents: their text, codes and vectors are gone.

    Rows move, so neighbours prepared for the old bank don't fit the new one (its fingerprint
    says so), and a saved index goes with the old bank. Raises `UserError` for what is not there.
    """
    require_there(bank, removed)
    return merge(bank.path, [bank], removed, made_from)


def merge(
    path: epath.PathLike, banks: Sequence[Bank], removed: Removed = Removed(), made_from: str = ""
) -> Bank:
    """Write one bank of several, in order, without what was removed, in bounded memory.

    A document that an earlier bank has, under the same key and with the same ids, is not repeated.
    Raises `UserError` for banks of different encoders or vocabularies, and where two documents
    share a key and differ.
    """
    first = banks[0].manifest
    for bank in banks[1:]:
        for what in ("encoder", "vocab"):
            if bank.manifest[what] != first[what]:
                raise UserError(
                    f"the bank {bank.path} was made with {what} {bank.manifest[what]}, but "
                    f"{banks[0].path} with {first[what]}; only banks of one {what} can be merged."
                )
    others = [bank.fingerprint for bank in banks[1:]]
    return write_bank(
        path,
        _merged(banks, removed),
        first["encoder"],
        first["vocab"],
        {
            "made_from": made_from,
            "merged": [*first.get("merged", []), *others],
            "refused": first.get("refused", {}),
        },
    )


def _merged(banks: Sequence[Bank], removed: Removed) -> Iterator[Part]:
    seen = np.zeros(0, np.uint64)
    for bank in banks:
        both = bank.key_hashes ^ np.bitwise_not(bank.content)
        for documents, vectors in bank.parts(~np.isin(both, seen)):
            kept = [not removed.covers(d.key, d.source, d.licence) for d in documents]
            yield list(itertools.compress(documents, kept)), vectors[np.asarray(kept, bool)]
        seen = np.concatenate([seen, both])


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
