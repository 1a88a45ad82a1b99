"""From raw records to a corpus, a memory bank and the neighbours of every record.

    bank           the source's `bank` split: rendered documents and their CLIP vectors
    bank-removed.json   keys of documents that were taken out of the bank and stay out
    corpus/SPLIT   `train` and `validation`: rendered documents, each with candidates from the bank

Work is cut into shards and saved one by one; what is finished is not done again.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from cm3jax.config import Experiment
from cm3jax.data.corpus import Corpus, CorpusDocument, CorpusWriter, Shard
from cm3jax.data.sources import RawRecord, Source, open_source
from cm3jax.document import Image, Text, render
from cm3jax.errors import UserError
from cm3jax.files import digest, read_json, write_json
from cm3jax.retrieval.bank import Bank, BankDocument, remove, require_keys
from cm3jax.retrieval.clauses import clauses
from cm3jax.retrieval.clip import ClipEncoder, fit, text_and_image
from cm3jax.retrieval.index import build_index
from cm3jax.retrieval.select import NONE, Choice, choose, drop_pieces, side_by_side
from cm3jax.shapes import Bool, Float, Int
from cm3jax.tokenizers.image import ImageTokenizer
from cm3jax.tokenizers.text import TextTokenizer
from cm3jax.vocab import Vocab

SHARD = 2048
"""Records prepared and saved at a time."""
SPLITS = ("train", "validation")
_MADE_FROM = "made_from.json"

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Tools:
    """What turns raw records into ids and vectors."""

    text: TextTokenizer
    image: ImageTokenizer
    encoder: ClipEncoder

    def vocab(self, experiment: Experiment) -> Vocab:
        """The experiment's vocabulary as filled by these tokenizers."""
        return Vocab(experiment.vocab, self.text.fingerprint, self.image.fingerprint)


@dataclasses.dataclass(frozen=True)
class _Tokenised:
    """One raw record in ids, or the reason why it cannot be."""

    raw: RawRecord
    ids: Int[np.ndarray, " L"]
    refused: str = ""


def prepare(experiment: Experiment, tools: Tools, report: Report = print) -> None:
    """Make the bank `data.bank` and the corpus `data.corpus`, or what is missing of them.

    Raises `UserError` when a path is not set or the source has no usable record.
    """
    for name in ("corpus", "bank"):
        if not getattr(experiment.data, name):
            raise UserError(f"data.{name} is empty; say where it goes, e.g. data/NAME/{name}.")
    bank = prepare_bank(experiment, tools, report)
    retriever = None
    for split, writer in _writers(experiment, tools, bank).items():
        if writer.complete:
            report(f"{split}: {writer.path} is complete")
            continue
        retriever = retriever or _Retriever(experiment, tools.encoder, bank)
        _corpus(experiment, split, tools, retriever, writer, report)


def is_prepared(experiment: Experiment, tools: Tools) -> bool:
    """Whether `prepare` would find nothing to do."""
    bank = standing_bank(experiment, tools)
    if bank is None:
        return False
    return all(writer.complete for writer in _writers(experiment, tools, bank).values())


def _writers(experiment: Experiment, tools: Tools, bank: Bank) -> dict[str, CorpusWriter]:
    """The writer of each split, which knows what its corpus is to be made from."""
    # Where the encoder lies, and how many documents are drawn later, decides nothing here.
    rules = dataclasses.replace(experiment.retrieval, encoder="", documents=1)
    decides = (tools.vocab(experiment).fingerprint, bank.fingerprint)
    decides += (repr((_room(experiment), rules)),)
    return {
        split: CorpusWriter(
            epath.Path(experiment.data.corpus) / split, _made_from(experiment, split, *decides)
        )
        for split in SPLITS
    }


def _room(experiment: Experiment) -> int | None:
    """Tokens of the row that a record must fit; None where rows are cut from a stream."""
    return experiment.model.context if experiment.data.rows == "whole" else None


def _made_from(experiment: Experiment, split: str, *decides: str) -> str:
    """Identifies a split's raw records and what else decides its content."""
    data = experiment.data
    raw = (data.source, data.records, data.image_size, experiment.seed, split)
    return digest(repr(raw), *decides)


# -------------------------------------------------------------------------------------------- bank


def prepare_bank(experiment: Experiment, tools: Tools, report: Report = print) -> Bank:
    """The bank `data.bank` alone, made now unless it stands."""
    if (bank := standing_bank(experiment, tools)) is not None:
        report(f"bank: {bank.path} is complete")
        return bank
    vocab, removed = tools.vocab(experiment), removed_keys(experiment.data.bank)
    source = open_source(experiment.data, "bank", experiment.seed)
    documents, vectors = [], [np.zeros((0, tools.encoder.config.width), np.float32)]
    progress = _Progress("bank", len(source), report)
    for span in _spans(source):
        raws = [raw for raw in (source[record] for record in span) if raw.key not in removed]
        kept = [item for item in tokenise(raws, tools, vocab) if not item.refused]
        parts = [_encoder_parts(item.raw, tools.encoder) for item in kept]
        vectors.append(tools.encoder.encode_documents(parts))
        documents += [_bank_document(item, *part) for item, part in zip(kept, parts, strict=True)]
        progress.add(len(span))
    if not documents:
        raise UserError(f"data.source={experiment.data.source} gives no documents for the bank.")
    fingerprints = (tools.encoder.fingerprint, vocab.fingerprint)
    bank = Bank.build(experiment.data.bank, documents, np.concatenate(vectors), *fingerprints)
    write_json(bank.path / _MADE_FROM, _bank_made_from(experiment, *fingerprints))
    return bank


def standing_bank(experiment: Experiment, tools: Tools) -> Bank | None:
    """The bank `data.bank` if it is what `prepare` would make, else None."""
    fingerprints = (tools.encoder.fingerprint, tools.vocab(experiment).fingerprint)
    path = epath.Path(experiment.data.bank)
    note = path / _MADE_FROM
    if not note.exists():
        return None
    if read_json(note, "the bank's notes") != _bank_made_from(experiment, *fingerprints):
        return None
    return Bank.open(path, *fingerprints)


def remove_documents(experiment: Experiment, keys: Sequence[str]) -> Bank:
    """Take documents out of the bank `data.bank`, so that no later preparation brings them back.

    Raises `UserError` for a key that is not there.
    """
    bank = Bank.open(experiment.data.bank)
    fingerprints = (bank.manifest["encoder"], bank.manifest["vocab"])
    note = bank.path / _MADE_FROM
    made_from = read_json(note, "the bank's notes") if note.exists() else None
    current = made_from == _bank_made_from(experiment, *fingerprints)
    require_keys(bank, keys)
    # First of all: whatever happens after it, they are gone from what is prepared next.
    write_json(_removed_file(bank.path), sorted(removed_keys(bank.path) | set(keys)))
    smaller = remove(bank, keys)
    if current:
        write_json(note, _bank_made_from(experiment, *fingerprints))
    return smaller


def removed_keys(bank: epath.PathLike) -> set[str]:
    """The documents that were taken out of the bank at a path."""
    file = _removed_file(epath.Path(bank))
    return set(read_json(file, "the list of removed documents")) if file.exists() else set()


def _removed_file(bank: epath.Path) -> epath.Path:
    """Beside the bank, which is replaced as a whole."""
    return bank.parent / f"{bank.name}-removed.json"


def _bank_made_from(experiment: Experiment, encoder: str, vocab: str) -> str:
    removed = sorted(removed_keys(experiment.data.bank))
    return _made_from(experiment, "bank", vocab, encoder, *removed)


def _bank_document(item: _Tokenised, text: str | None, image: np.ndarray | None) -> BankDocument:
    return BankDocument(
        key=item.raw.key,
        ids=item.ids,
        text=text or "",
        has_text=text is not None,
        has_image=image is not None,
        source=item.raw.source,
        licence=item.raw.licence,
        subjects=item.raw.subjects,
        held_out=item.raw.held_out,
    )


# ------------------------------------------------------------------------------------------ corpus


def _corpus(
    experiment: Experiment,
    split: str,
    tools: Tools,
    retriever: "_Retriever",
    writer: CorpusWriter,
    report: Report,
) -> None:
    """What is missing of a split."""
    vocab, bank = tools.vocab(experiment), retriever.bank
    source = open_source(experiment.data, split, experiment.seed)
    progress = _Progress(split, len(source), report)
    spans = _spans(source)
    for number, span in enumerate(spans):
        if not writer.has(number):
            raws = [source[record] for record in span]
            items = tokenise(raws, tools, vocab, _room(experiment))
            writer.write(number, _shard(items, span, retriever))
        progress.add(len(span))
    facts = {
        "split": split,
        "source": experiment.data.source,
        "vocab": dataclasses.asdict(vocab.config),
        "vocab_fingerprint": vocab.fingerprint,
        "text_fingerprint": vocab.text_fingerprint,
        "image_fingerprint": vocab.image_fingerprint,
        "encoder": tools.encoder.fingerprint,
        "bank": bank.fingerprint,
    }
    writer.finish(len(spans), facts)
    manifest = Corpus.open(writer.path).manifest
    share = {name: n / manifest["selection"]["seen"] for name, n in manifest["selection"].items()}
    report(
        f"{split}: {manifest['records']} records in {writer.path}, {len(manifest['refused'])} "
        f"refused; of the neighbours seen, {share['too_relevant']:.1%} were too relevant and "
        f"{share['not_diverse']:.1%} not diverse"
    )


def _shard(items: list[_Tokenised], span: range, retriever: "_Retriever") -> Shard:
    """The shard of some of the source's records."""
    kept = [item for item in items if not item.refused]
    records = [record for record, item in zip(span, items, strict=True) if not item.refused]
    chosen = retriever.candidates(kept, np.asarray(records, np.int64))

    def column(name: str) -> np.ndarray:
        table = [[getattr(choice, name) for choice in view] for view in chosen]
        return np.moveaxis(np.asarray(table), 2, 0)

    counts = [choice.counts for view in chosen for choice in view]
    return Shard(
        documents=[
            CorpusDocument(item.raw.key, item.raw.kind, item.raw.licence, item.ids) for item in kept
        ],
        neighbours=column("ids").astype(np.int32),
        scores=column("scores").astype(np.float32),
        refused={item.raw.key: item.refused for item in items if item.refused},
        selection={name: sum(count[name] for count in counts) for name in counts[0]},
    )


class _Retriever:
    """Finds the candidates of records in the bank: neither held out, nor the record itself."""

    def __init__(self, experiment: Experiment, encoder: ClipEncoder, bank: Bank):
        self.bank = bank
        self._config, self._seed = experiment.retrieval, experiment.seed
        self._encoder = encoder
        self._rows = np.flatnonzero(~bank.held_out)
        self._index = build_index(bank.vectors[self._rows], self._config.index)
        self._pair = bank.has_text & bank.has_image
        self._copies: dict[bytes, list[int]] = {}
        for row, document in enumerate(bank.documents()):
            self._copies.setdefault(document.ids.tobytes(), []).append(row)

    def candidates(
        self, items: list[_Tokenised], records: Int[np.ndarray, " M"]
    ) -> list[tuple[Choice, Choice]]:
        """Per query view, the candidates by text and by picture; a missing part has none.

        A picture has one view, which stands for all: its patches are not dropped.
        """
        parts = [_encoder_parts(item.raw, self._encoder) for item in items]
        exclude = self._exclude(items)
        with_text = np.asarray([text is not None for text, _ in parts], bool)
        with_image = np.asarray([image is not None for _, image in parts], bool)
        images = [image for _, image in parts if image is not None]
        by_image = self._find(self._encoder.encode_images(images), with_image, exclude)
        texts = [self._clauses(text) for text, _ in parts if text is not None]
        pieces = [self._encoder.tokenizer.encode(part) for text in texts for part in text]
        counts = [len(text) for text in texts]
        askers = np.repeat(records[with_text], counts)
        chosen = []
        for view in range(self._config.views):
            share = self._config.query_dropout
            seen = drop_pieces(pieces, askers, view, share, self._seed)
            by_text = self._find(self._encoder.encode_pieces(seen), with_text, exclude, counts)
            chosen.append((by_text, by_image))
        return chosen

    def _clauses(self, text: str) -> list[str]:
        return clauses(text) if self._config.clauses else [text]

    def _exclude(self, items: list[_Tokenised]) -> Int[np.ndarray, "M X"]:
        own = [self._copies.get(item.ids.tobytes(), []) for item in items]
        exclude = np.full((len(items), max([1, *map(len, own)])), NONE)
        for row, rows in enumerate(own):
            exclude[row, : len(rows)] = rows
        return exclude

    def _find(
        self,
        vectors: Float[np.ndarray, "B E"],
        has: Bool[np.ndarray, " M"],
        exclude: Int[np.ndarray, "M X"],
        counts: list[int] | None = None,
    ) -> Choice:
        """Candidates of the records that have the query, `NONE` for the others.

        `counts` says how many of the vectors belong to each of them; one if left out.
        """
        counts = counts or [1] * len(vectors)
        found = self._index.search(vectors, self._config.pool)
        found = side_by_side(dataclasses.replace(found, ids=self._rows[found.ids]), counts)
        choice = choose(
            found,
            self.bank.vectors,
            self._pair,
            self._config,
            exclude[has],
            queries=max([1, *counts]),
        )
        ids = np.full((len(has), self._config.candidates), NONE, np.int64)
        scores = np.zeros(ids.shape, np.float32)
        ids[has], scores[has] = choice.ids, choice.scores
        return Choice(ids, scores, choice.counts)


# -------------------------------------------------------------------------------------- raw records


def tokenise(
    records: Sequence[RawRecord], tools: Tools, vocab: Vocab, room: int | None = None
) -> list[_Tokenised]:
    """Ids of raw records; pictures are encoded together.

    One that does not fit a row of `room` tokens, between its two `<eos>`, is refused.
    """
    pictures = [part for raw in records for part in raw.segments if not isinstance(part, str)]
    codes = iter(tools.image.encode(pictures) if pictures else ())
    result = []
    for raw in records:
        document = tuple(
            Text(tuple(tools.text.encode(part)))
            if isinstance(part, str)
            else Image(tuple(next(codes).tolist()))
            for part in raw.segments
        )
        try:
            ids = render(document, vocab)
            refused = "" if len(ids) else "it is empty"
        except ValueError as error:
            ids, refused = np.zeros(0, np.int32), str(error)
        if room is not None and len(ids) > room - 2:
            refused = f"it has {len(ids)} tokens, and a row holds {room - 2}"
        result.append(_Tokenised(raw, ids, refused))
    return result


def _encoder_parts(raw: RawRecord, encoder: ClipEncoder) -> tuple[str | None, np.ndarray | None]:
    """The text and the picture of a record as the encoder takes them."""
    text, image = text_and_image(raw.segments)
    return text, None if image is None else fit(image, encoder.config)


def _spans(source: Source) -> list[range]:
    """The records of each shard."""
    return [range(i, min(i + SHARD, len(source))) for i in range(0, len(source), SHARD)]


class _Progress:
    """One line whenever a shard is done."""

    def __init__(self, name: str, total: int, report: Report):
        self._name, self._total, self._report = name, total, report
        self._done, self._start = 0, time.perf_counter()

    def add(self, count: int) -> None:
        self._done += count
        rate = self._done / (time.perf_counter() - self._start)
        self._report(f"{self._name}: {self._done}/{self._total} records, {rate:.0f}/s")
