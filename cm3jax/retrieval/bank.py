"""The memory bank on disk: documents that can be retrieved, and their vectors.

    manifest.json                   fingerprints, counts, sources, licences, checksums
    documents-00000.array_record    one record per document: its ids and what is known of it
    columns.npy                     length and modalities of every document
    vectors.npy                     unit document vectors, float32 [M E]

A document is its row number; equal documents give equal bytes. A bank is written beside its place
and moved there when complete, and never changed: taking documents out of it and merging others into
it write another one (`cm3jax.retrieval.takedown`).
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.array_records import Records, packed_ids
from cm3jax.io.checksums import file_entry
from cm3jax.io.folders import hold, is_held, read_whole
from cm3jax.io.shard_writer import STATE, load_column, read_manifest
from cm3jax.retrieval.bank_files import (
    COLUMNS,
    EARLIER_COLUMNS,
    BankDocument,
    bank_files,
    content_hash,
    decode_document,
    key_hash,
)
from cm3jax.retrieval.bank_writer import DocumentBatch, sweep_parts, write_bank
from cm3jax.retrieval.removed import Removed
from cm3jax.shapes import Bool, Float, Int

_SHARD = 65_536
_FIELDS = {
    **dict.fromkeys(("encoder", "vocab", "fingerprint"), str),
    **dict.fromkeys(("shards", "counts", "sources", "licences"), dict[str, int]),
}
"""What a manifest holds for certain."""


class Bank:
    """A memory bank, opened for reading. Rows are read at random without loading the rest."""

    def __init__(self, path: epath.PathLike, manifest: dict[str, Any]):
        self.path = epath.Path(path)
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        remedy = _remedy(self.path)
        self._records = Records(self.path, manifest["shards"], remedy)
        self._records.open()  # so that a bank that is replaced can be read on
        self._columns = load_column(
            self.path / "columns.npy", "the bank", remedy, COLUMNS, EARLIER_COLUMNS
        )
        self.vectors: Float[np.ndarray, "M E"] = load_column(
            self.path / "vectors.npy", "the bank", remedy, np.float32, axes=2
        )
        if not len(self._records) == len(self._columns) == len(self.vectors):
            raise UserError(f"the files of the bank {path} are of different lengths; {remedy}.")

    @staticmethod
    def build(
        path: epath.PathLike,
        documents: Iterable[BankDocument],
        vectors: Float[np.ndarray, "M E"],
        encoder_fingerprint: str,
        vocab_fingerprint: str,
    ) -> "Bank":
        """Write a bank of `documents`, in order, replacing what is at `path`.

        `vectors` are their unit vectors. Raises `ValueError` when the counts differ, `UserError`
        on a key that occurs twice.
        """
        rows, rest = iter(documents), len(vectors)

        def parts() -> Iterator[DocumentBatch]:
            for first in range(0, max(rest, 1), _SHARD):
                part = vectors[first : first + _SHARD]
                taken = list(itertools.islice(rows, len(part)))
                if len(taken) < len(part) or (first + len(part) == rest and next(rows, None)):
                    raise ValueError(f"there are {rest} vectors for another number of documents")
                yield taken, part

        write_bank(path, parts(), encoder_fingerprint, vocab_fingerprint)
        return Bank.open(path)

    @staticmethod
    def open(
        path: epath.PathLike,
        encoder_fingerprint: str | None = None,
        vocab_fingerprint: str | None = None,
    ) -> "Bank":
        """Open a bank; given fingerprints must be those that it was made with.

        What was interrupted is finished first: a replacement of the bank, and a removal, so that
        no document is in it that was taken out. Raises `UserError` for a missing bank, a missing
        or truncated file, another encoder or another vocabulary, and for documents that were taken
        out of it where it cannot be written, or is being written.
        """

        def read() -> Bank:
            return Bank._read(epath.Path(path), encoder_fingerprint, vocab_fingerprint)

        _list_removed(path)
        bank, removed = read_whole(path, bank_files, read), Removed.of(path)
        if not bank.has_any(removed):
            return bank
        try:
            with hold(path, "taking documents out of the bank"):
                sweep_parts(path, "parts")  # they hold what was taken out, too
                bank = read_whole(path, bank_files, read)
                rewrite(path, [bank], removed, bank.manifest.get("made_from", ""))
        except UserError as error:
            raise UserError(
                f"documents that were taken out of {path} are still there: {error}"
            ) from None
        return read_whole(path, bank_files, read)

    @staticmethod
    def _read(path: epath.Path, encoder_fingerprint: str | None, vocab_fingerprint: str | None):
        if not (path / "manifest.json").exists():
            raise UserError(
                f"the memory bank is missing: {path}/manifest.json does not exist; make it with "
                "python -m launch.prepare EXPERIMENT, or the quickstart's and the shipped weights' "
                "with bash launch/quickstart.sh."
            )
        manifest = read_manifest(path, "the memory bank", _FIELDS, _remedy(path))
        made = {
            "encoder": ("encoder", encoder_fingerprint),
            "vocab": ("vocabulary", vocab_fingerprint),
        }
        for what, (word, wanted) in made.items():
            if wanted is not None and wanted != manifest[what]:
                raise UserError(
                    f"the bank {path} was made with the {word} {manifest[what]}, but this run has "
                    f"the {word} {wanted}; use that one, or build the bank again with python -m "
                    "launch.index build EXPERIMENT."
                )
        return Bank(path, manifest)

    def verify(self) -> None:
        """Read every file and compare checksums; `UserError` names the damaged one."""
        for name, file in self.manifest["files"].items():
            if file_entry(self.path / name) != file:
                raise UserError(
                    f"the bank's file {self.path / name} is damaged (its checksum differs); "
                    f"{_remedy(self.path)}."
                )

    def __len__(self) -> int:
        return len(self._columns)

    def ids(self, row: int) -> Int[np.ndarray, " L"]:
        """The vocabulary ids of one document, int32; `IndexError` outside the bank, `UserError` if
        it is damaged."""
        return packed_ids(self._records[row])

    def meta(self, row: int) -> BankDocument:
        """All that the bank keeps of one document; `IndexError` outside the bank."""
        return decode_document(self._records[row])

    def documents(self) -> Iterable[BankDocument]:
        """Every document, in order."""
        return map(decode_document, self._records)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of every key; reads the whole bank once."""
        return {document.key: row for row, document in enumerate(self.documents())}

    def showing(self, pictures: Iterable[str]) -> Int[np.ndarray, " R"]:
        """Rows of the documents that have one of these images (`BankDocument.pictures`)."""
        hashes, rows = self._pictures
        wanted = np.unique(np.asarray([int(picture, 16) for picture in pictures], np.uint64))
        first, last = (np.searchsorted(hashes, wanted, side) for side in ("left", "right"))
        found = [rows[start:stop] for start, stop in zip(first, last, strict=True)]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))

    @functools.cached_property
    def _pictures(self) -> tuple[np.ndarray, Int[np.ndarray, " P"]]:
        """Hashes of all images in ascending order, uint64, and whose they are."""
        if "pictures.npy" not in self.manifest["files"]:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        hashes = load_column(self.path / "pictures.npy", "the bank", _remedy(self.path), np.uint64)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], np.repeat(np.arange(len(self)), self._columns["pictures"])[order]

    def has_any(self, removed: Removed) -> bool:
        """Whether any document is in it that is to be taken out."""
        of_rule = {*self.manifest["sources"]} & {*removed.sources}
        of_rule |= {*self.manifest["licences"]} & {*removed.licences}
        hashes = np.asarray([key_hash(key) for key in removed.keys], np.uint64)
        rows = np.flatnonzero(np.isin(self.key_hashes, hashes))
        return bool(of_rule) or any(self.meta(int(row)).key in removed.keys for row in rows)

    def parts(self, kept: Bool[np.ndarray, " M"]) -> Iterator[DocumentBatch]:
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
        """Which documents have an image, bool [M]."""
        return self._columns["has_image"]

    @property
    def held_out(self) -> np.ndarray:
        """Which documents are kept from training, bool [M]."""
        return self._columns["held_out"]


def _remedy(path: epath.Path) -> str:
    """What to do about a damaged bank: one that says what it was made from counts as complete."""
    return f"remove {path} and run python -m launch.index build EXPERIMENT"


def _list_removed(path: epath.PathLike) -> None:
    """List beside a bank what only its manifest says was taken out, where that can be written.

    The list may have stayed where the bank was copied from, and must outlive the bank: one that is
    damaged is removed and made again.
    """
    with contextlib.suppress(OSError, UserError):
        if (removed := Removed.of(path)) != Removed.beside(path):
            with hold(path, "listing what was taken out of the bank"):
                if is_held(path):
                    removed.save(path)


def rewrite(
    path: epath.PathLike, banks: Sequence[Bank], removed: Removed, made_from: str = ""
) -> None:
    """Write one bank of several, in order, without what was removed, in bounded memory.

    A document that an earlier bank has, under the same key and with the same ids, is not repeated.
    Another document under the same key gets its content's hash behind it.
    """
    first = banks[0].manifest
    facts = {
        "made_from": made_from,
        "merged": [*first.get("merged", []), *(bank.fingerprint for bank in banks[1:])],
        "refused": first.get("refused", {}),
        **({STATE: first[STATE]} if STATE in first else {}),
    }
    write_bank(path, _parts(banks, removed), first["encoder"], first["vocab"], facts)


def _parts(banks: Sequence[Bank], removed: Removed) -> Iterator[DocumentBatch]:
    def covered(document: BankDocument) -> bool:
        return removed.covers(document.key, document.source, document.licence)

    seen, keys = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    for bank in banks:
        both = bank.key_hashes ^ np.bitwise_not(bank.content)
        taken = set(keys[np.isin(keys, bank.key_hashes)].tolist())
        more = [bank.key_hashes]
        for documents, vectors in bank.parts(~np.isin(both, seen)):
            named = [_renamed(d) if key_hash(d.key) in taken else d for d in documents]
            hashes = np.asarray([key_hash(d.key) for d in named], np.uint64)
            content = np.asarray([content_hash(d.ids) for d in named], np.uint64)
            again = np.isin(hashes ^ np.bitwise_not(content), seen)
            gone = [covered(old) or covered(new) for old, new in zip(documents, named, strict=True)]
            kept = ~again & ~np.asarray(gone, bool)
            yield list(itertools.compress(named, kept)), vectors[kept]
            more.append(hashes)
        seen, keys = np.concatenate([seen, both]), np.concatenate([keys, *more])


def _renamed(document: BankDocument) -> BankDocument:
    """A document under a key that only it has: with its content's hash behind its own.

    Keys are names of files and shards, which every download has alike, `00000.tar/000000000`.
    """
    return dataclasses.replace(document, key=document.key + _suffix(document))


def before_merging(document: BankDocument) -> BankDocument:
    """The document under the key of its own bank, without the hash that a merge put behind it."""
    return dataclasses.replace(document, key=document.key.removesuffix(_suffix(document)))


def _suffix(document: BankDocument) -> str:
    return f"~{content_hash(document.ids):016x}"
