"""The prepared corpus on disk: tokenised documents, their lengths and their neighbours.

    manifest.json                   fingerprints, counts, licence shares, refused records, checksums
    documents-00000.array_record    one record per document: its ids and what is known of it
    lengths.npy                     ids of every document, int32 [M]
    neighbours.npy, scores.npy      candidates by query view and modality: bank rows [M W Q C]
    answers.npy                     of instruction tuning: start, stop, recalled (0 or 1), [M 3]
    source.npy                      names and states of the raw records that it was made from

It is written shard by shard beside its place, so that an interrupted preparation continues, and
moved there complete.
"""

import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.config import DataConfig, VocabConfig
from cm3jax.data.changes import SOURCE, SourceState
from cm3jax.errors import UserError
from cm3jax.io.array_records import Records, pack_document, packed_ids, unpack_document
from cm3jax.io.checksums import file_entry
from cm3jax.io.experiment_json import build
from cm3jax.io.files import digest
from cm3jax.io.folders import read_whole, settle
from cm3jax.io.shard_writer import (
    MANIFEST,
    Notes,
    ShardWriter,
    load_column,
    manifest_has,
    read_manifest,
    shard_files,
)
from cm3jax.io.typed_json import read_fields
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Float, Int

COLUMNS = ("lengths", "neighbours", "scores")
_KINDS = ((np.int32, 1), (np.int32, 4), (np.float32, 4))
"""Their types, and their numbers of axes."""
_ANSWERS = "answers"
_FIELDS = {
    **dict.fromkeys(("text_fingerprint", "image_fingerprint", "bank"), str),
    **{"shards": dict[str, int], "licence_shares": dict[str, float], "vocab": dict[str, Any]},
}
"""What a manifest holds for certain."""
IN_MEMORY = 1 << 28
"""Ids (1 GiB) up to which documents are held in memory; larger sets are read as needed."""


def corpus_files(folder: epath.Path) -> list[str] | None:
    """The files of a corpus in a folder, its manifest last; None if there is none, or a bank."""
    return None if manifest_has(folder, "counts") else shard_files(folder)


@dataclasses.dataclass(frozen=True, eq=False)
class CorpusDocument:
    """One document of a corpus."""

    key: str
    """Name of its raw record."""
    kind: str
    """What sort of record it is, as the source says."""
    licence: str
    ids: Int[np.ndarray, " L"]
    """The rendered document in the vocabulary."""
    source: str = ""
    hash: str = ""
    """Hash of the raw record's content."""
    pictures: tuple[str, ...] = ()
    """Hashes of its images' pixels (`RawRecord.pictures`)."""
    subjects: tuple[str, ...] = ()
    """Names of what it is about (`RawRecord.subjects`); none in corpora of earlier versions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """A part of a corpus, ready to be written."""

    documents: list[CorpusDocument]
    neighbours: Int[np.ndarray, "M W Q C"]
    scores: Float[np.ndarray, "M W Q C"]
    refused: dict[str, str]
    """Keys of records that are no part of the corpus, with the reason."""
    selection: dict[str, int]
    """What the retrieval rules did (`cm3jax.retrieval.select.Choice.counts`)."""
    leaks: dict[str, str] = dataclasses.field(default_factory=dict)
    """Keys of evaluation records that the bank holds too, with the key of the bank's document."""
    answers: Int[np.ndarray, "M 3"] | None = None
    """Where each document's answer is (`cm3jax.tasks.example.Answer`)."""


class CorpusWriter:
    """Writes a corpus shard by shard, and goes on where an earlier one stopped.

    `made_from` identifies all settings that decide the content, and `states` the raw records of
    each shard, where they can change: shards made from something else count as missing.
    """

    def __init__(self, path: epath.PathLike, made_from: str, states: Sequence[str] = ()):
        self.path = epath.Path(path)
        self._shards = ShardWriter(path, made_from, corpus_files, states=states)

    def require_ours(self) -> None:
        """Raise `UserError` where something of somebody else's would be written over."""
        self._shards.require_ours("a corpus")

    @property
    def complete(self) -> bool:
        """Whether the corpus is complete."""
        settle(self.path, corpus_files)
        return self._shards.complete

    def has(self, number: int) -> bool:
        """Whether a shard was written."""
        return self._shards.has(number)

    def outdated(self) -> list[tuple[int, np.ndarray]]:
        """The shards whose raw records have changed since; see `say_why_again`."""
        return self._shards.outdated(SOURCE)

    def write(self, number: int, shard: Shard, made: SourceState | None = None) -> None:
        """Write one shard; its notes come last and make it count.

        `made` is the state of the raw records that it is made from.
        """
        columns = {
            "lengths": np.asarray([len(document.ids) for document in shard.documents], np.int32),
            "neighbours": shard.neighbours,
            "scores": shard.scores,
        }
        if shard.answers is not None:
            columns[_ANSWERS] = shard.answers
        notes = {
            "licences": Counter(document.licence for document in shard.documents),
            "refused": shard.refused,
            "leaks": shard.leaks,
            "selection": shard.selection,
        }
        if made is not None:
            columns[SOURCE] = made.table
        self._shards.write(number, map(_encode, shard.documents), columns, notes)

    def finish(self, shards: int, facts: dict[str, Any], may_be_empty: bool = False) -> None:
        """Join the columns of all shards, write the manifest, which also holds `facts`, and move
        the corpus to its place.

        Raises `UserError` when no shard holds a record, unless it `may_be_empty`.
        """
        known = (*COLUMNS, _ANSWERS, SOURCE)
        columns = [n for n in known if (self._shards.parts / f"{n}-00000.npy").exists()]
        self._shards.finish(
            shards, columns, lambda notes, _: facts | self._manifest(notes, may_be_empty)
        )

    def _manifest(self, notes: list[Notes], may_be_empty: bool) -> dict[str, Any]:
        records = sum(note["records"] for note in notes)
        if not records and not may_be_empty:
            reasons = [reason for note in notes for reason in note["refused"].values()]
            first = f" (the first was refused because {reasons[0]})" if reasons else ""
            raise UserError(
                f"{self.path} would have no record{first}; check data.source or data.tasks, and "
                "data.records."
            )
        licences: Counter[str] = sum((Counter(note["licences"]) for note in notes), Counter())
        return {
            "licence_shares": {name: n / records for name, n in sorted(licences.items())},
            "refused": dict(item for note in notes for item in note["refused"].items()),
            "leaks": dict(item for note in notes for item in note["leaks"].items()),
            "selection": {
                name: sum(note["selection"][name] for note in notes)
                for name in notes[0]["selection"]
            },
        }


class Corpus:
    """A corpus, opened for reading. Documents are read at random without loading the rest."""

    def __init__(self, path: epath.PathLike, manifest: dict[str, Any]):
        self.path = epath.Path(path)
        self.manifest = manifest
        remedy = _remedy(self.path)
        self.lengths, self.neighbours, self.scores = (
            load_column(self.path / f"{name}.npy", "the corpus", remedy, dtype, axes=axes)
            for name, (dtype, axes) in zip(COLUMNS, _KINDS, strict=True)
        )
        self.answers: Int[np.ndarray, "M 3"] | None = None
        if f"{_ANSWERS}.npy" in manifest["files"]:
            self.answers = load_column(
                self.path / f"{_ANSWERS}.npy", "the corpus", remedy, np.int32, axes=2
            )
        self._records = Records(self.path, manifest["shards"], remedy)
        columns = (self.lengths, self.neighbours, self.scores)
        if any(len(column) != len(self._records) for column in columns):
            raise UserError(f"the files of the corpus {path} are of different lengths; {remedy}.")
        self._records.open()  # so that a corpus that is replaced can be read on
        self._kept = np.ones(len(self.lengths), bool)
        self._numbers = np.flatnonzero(self._kept)

    @staticmethod
    def open(path: epath.PathLike, sizes: VocabConfig | None = None) -> "Corpus":
        """Open a corpus; `UserError` if it is missing, or names the file that is truncated.

        So, too, if `sizes` is given and the corpus was made with other vocabulary sizes.
        """
        return read_whole(path, corpus_files, lambda: Corpus._read(epath.Path(path), sizes))

    @staticmethod
    def _read(path: epath.Path, sizes: VocabConfig | None) -> "Corpus":
        if not (path / "manifest.json").exists():
            raise UserError(
                f"the corpus {path} is missing or not complete; make it with python -m "
                "launch.prepare EXPERIMENT, the quickstart's with bash launch/quickstart.sh."
            )
        manifest = read_manifest(path, "the corpus", _FIELDS, _remedy(path))
        corpus = Corpus(path, manifest)
        if sizes is not None and corpus.vocab.config != sizes:
            raise UserError(
                f"the corpus {path} was made with {corpus.vocab.config}, but this run has {sizes}; "
                "make them equal."
            )
        return corpus

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content of all files and of which records are used."""
        return digest(json.dumps(self.manifest["files"], sort_keys=True), self._kept)

    def only(self, kind: str) -> "Corpus":
        """A corpus of its records of one kind, numbered from 0; reads them all. `UserError` if
        there is none.
        """
        kinds = np.array([_decode(record).kind for record in self._records])
        part = copy.copy(self)
        part._kept = kinds == kind
        part._numbers = np.flatnonzero(part._kept)
        if not len(part._numbers):
            raise UserError(
                f"the corpus {self.path} has no record of the kind {kind!r}; "
                f"it has {', '.join(np.unique(kinds).tolist())}."
            )
        for column in COLUMNS:
            setattr(part, column, getattr(self, column)[part._kept])
        if self.answers is not None:
            part.answers = self.answers[part._kept]
        return part

    @property
    def vocab(self) -> Vocab:
        """The vocabulary that its ids belong to."""
        fingerprints = (self.manifest["text_fingerprint"], self.manifest["image_fingerprint"])
        config = build(VocabConfig, self.manifest["vocab"], f"{self.path / MANIFEST}", "vocab")
        return Vocab(config, *fingerprints)

    def verify(self) -> None:
        """Read every file and compare checksums; `UserError` names the damaged one."""
        for name, file in self.manifest["files"].items():
            if file_entry(self.path / name) != file:
                raise UserError(
                    f"the corpus file {self.path / name} is damaged (its checksum differs); "
                    f"{_remedy(self.path)}."
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, record: int) -> CorpusDocument:
        """One document; `IndexError` outside the corpus, `UserError` if it is damaged."""
        return _decode(self._record(record))

    def ids(self, record: int) -> Int[np.ndarray, " L"]:
        """Its ids, int32; `IndexError` outside the corpus, `UserError` if it is damaged."""
        return packed_ids(self._record(record))

    def all_ids(self) -> Iterator[Int[np.ndarray, " L"]]:
        """The ids of every document, in order; `UserError` names a damaged one."""
        return map(packed_ids, itertools.compress(self._records, self._kept))

    def _record(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} is outside the {len(self)} of {self.path}")
        return self._records[int(self._numbers[number])]


def licence_shares(data: DataConfig, weights: Sequence[float] = ()) -> dict[str, float]:
    """The share of each licence among the training records of `data.corpus`, or of `data.mixture`
    by its weights, which `weights` replaces; empty where no corpus is prepared.
    """
    homes = [f"{mixture_part(name)[0]}/corpus" for name, _ in data.mixture]
    parts = list(zip(homes, weights or (weight for _, weight in data.mixture), strict=True))
    shares: Counter[str] = Counter()
    for corpus, weight in parts or [(data.corpus, 1.0)]:
        note = epath.Path(corpus) / "train" / "manifest.json"
        if corpus:
            settle(note.parent, corpus_files)
        if corpus and note.exists():
            fields = {"licence_shares": dict[str, float]}
            manifest = read_fields(note, fields, "the corpus manifest", _remedy(note.parent))
            for name, share in manifest["licence_shares"].items():
                shares[name] += weight * share
    return {name: share / shares.total() for name, share in sorted(shares.items())}


def corpora_of(data: DataConfig) -> list[str]:
    """The directories of the prepared corpora that a run reads, each once; empty without any."""
    if data.mixture:
        return list(dict.fromkeys(f"{mixture_part(name)[0]}/corpus" for name, _ in data.mixture))
    return [data.corpus] if data.corpus else []


def banks_of(data: DataConfig) -> list[str]:
    """The memory banks whose documents a run is shown, each once; none without."""
    if data.mixture:
        return list(dict.fromkeys(f"{mixture_part(name)[0]}/bank" for name, _ in data.mixture))
    return [data.bank] if data.bank else []


def mixture_part(name: str) -> tuple[str, str]:
    """The directory and the kind of records that `data.mixture` names; "" is all of them."""
    home, colon, kind = name.rpartition(":")
    return (home, kind) if colon and "/" not in kind else (name, "")  # gs://bucket/data is a path


def _remedy(path: epath.Path) -> str:
    return f"remove {path} and run python -m launch.prepare EXPERIMENT"


class Documents:
    """Ids of a corpus's or a bank's documents by number, in memory where they fit."""

    def __init__(
        self,
        lengths: Int[np.ndarray, " M"],
        read: Callable[[int], Int[np.ndarray, " L"]],
        every: Callable[[], Iterable[Int[np.ndarray, " L"]]],
        in_memory: int = IN_MEMORY,
    ):
        self.lengths = np.asarray(lengths, np.int32)
        self._read = read
        self._flat = None
        if self.lengths.sum(dtype=np.int64) <= in_memory:
            self._flat = np.concatenate([np.zeros(0, np.int32), *every()])
            self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def padded(
        self, rows: Int[np.ndarray, "*B"]
    ) -> tuple[Int[np.ndarray, "*B L"], Int[np.ndarray, "*B"]]:
        """Ids, zero-padded to the longest of them, and lengths; row -1 is no document."""
        lengths = np.where(rows < 0, 0, self.lengths[rows]).astype(np.int32)
        place = np.arange(max(1, lengths.max(initial=0)))
        inside = place < lengths[..., None]
        if self._flat is not None:
            index = np.where(inside, self._starts[rows][..., None] + place, 0)
            return np.where(inside, self._flat[index], 0), lengths
        out = np.zeros(inside.shape, np.int32)
        for where in np.argwhere(rows >= 0):
            ids = self._read(int(rows[tuple(where)]))
            out[tuple(where)][: len(ids)] = ids
        return out, lengths


def _encode(document: CorpusDocument) -> bytes:
    names = ("key", "kind", "licence", "source", "hash", "pictures", "subjects")
    return pack_document(document.ids, {name: getattr(document, name) for name in names})


def _decode(record: bytes) -> CorpusDocument:
    return CorpusDocument(**unpack_document(record))
