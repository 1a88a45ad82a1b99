"""The files of a memory bank: how a document is encoded, and which files are a bank's."""

import dataclasses
import hashlib

import numpy as np
from etils import epath

from cm3jax.io.array_records import pack_document, unpack_document
from cm3jax.io.files import digest
from cm3jax.io.shard_writer import manifest_has, shard_files
from cm3jax.retrieval.scann import index_files
from cm3jax.shapes import Int

DUPLICATES = "duplicates.npy"
"""Where in a bank's directory its copies are listed (`cm3jax.retrieval.duplicates`)."""
SAVED = "scann"
"""The folder of the saved index in a bank's directory."""
SAVED_TRAINING = f"{SAVED}-training"
"""The saved index of the documents that are not held out, where some are."""
COLUMNS = np.dtype(
    [
        *(("length", "<i4"), ("has_text", "?"), ("has_image", "?"), ("held_out", "?")),
        *(("key", "<u8"), ("content", "<u8"), ("pictures", "<i4")),
    ]
)
EARLIER_COLUMNS = np.dtype(COLUMNS.descr[:-1])
"""Those of earlier versions, which did not count images."""


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
    """Found at generation only: training never sees it as a neighbour."""
    hash: str = ""
    """Hash of the raw record's content."""
    pictures: tuple[str, ...] = ()
    """Hashes of its images' pixels (`RawRecord.pictures`): a record is shown none of its own."""


def bank_files(folder: epath.Path) -> list[str] | None:
    """The files in a folder that are a bank's, what was derived from it included; None if none
    is."""
    found = shard_files(folder)
    if found is None or manifest_has(folder, "licence_shares"):  # a corpus
        return None
    derived = [DUPLICATES] if (folder / DUPLICATES).exists() else []
    for name in (SAVED, SAVED_TRAINING):
        derived += [f"{name}/{file}" for file in index_files(folder / name)]
    return derived + found  # the manifest stays last


def mark_of(document: BankDocument) -> str:
    """What pages call a document that they show: 16 hex digits of its key and its content."""
    return mark(document.key, document.ids)


def mark(key: str, ids: Int[np.ndarray, " L"]) -> str:
    """`mark_of` the document of this key and these ids, in a bank or in a corpus."""
    return digest(key, np.ascontiguousarray(ids, "<i4"))


def key_hash(key: str) -> int:
    """64 bits of a document's key."""
    return _hash64(key.encode())


def content_hash(ids: Int[np.ndarray, " L"]) -> int:
    """64 bits of a document's ids: copies have the same."""
    return _hash64(np.ascontiguousarray(ids, "<i4").tobytes())


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def encode(document: BankDocument) -> bytes:
    """The record of a document."""
    names = sorted(field.name for field in dataclasses.fields(document) if field.name != "ids")
    return pack_document(document.ids, {name: getattr(document, name) for name in names})


def decode_document(record: bytes) -> BankDocument:
    """The document of a record."""
    return BankDocument(**unpack_document(record))
