"""Training the decoder from pixels: tokenise, retrieve, rotate and learn in one program.

Where the prepared corpus has neighbours that were chosen once, here every step searches the bank
with the documents' vectors as the encoder sees them, through `TokenizerBridge` and
`SequenceBuilder` (`data.online`). A record is shown the K best documents but itself; the cuts, the
views and the clauses of `launch.prepare` are not applied, and a row holds one sample. Everything
but the decoder is frozen: it goes into each step and is saved with none.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3jax import partition
from cm3jax.config import ClipConfig, DataConfig, Experiment
from cm3jax.data.ahead import ahead
from cm3jax.data.corpus import Documents
from cm3jax.data.pipeline import (
    Equipped,
    HostBatch,
    NoRecords,
    Position,
    RecordStream,
    marks_of_records,
    with_epochs,
)
from cm3jax.data.scan import RecordPictures, scan
from cm3jax.data.sources import RawRecord, open_source
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.learners import clip, vqgan
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.model.bridge import TokenizerBridge
from cm3jax.model.sequence_builder import BuiltRows, Queries, SequenceBuilder
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip_encoder import (
    CLIP,
    document_vectors,
    fit_picture,
    normalise_pixels,
    text_length,
    text_rows,
)
from cm3jax.retrieval.select import NONE
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Int, Key, UInt8
from cm3jax.tokenizers.image_tokenizer import to_pixels
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.loss import LossOutput
from cm3jax.training.metrics import StepCost


@dataclasses.dataclass(frozen=True, eq=False)
class PairTools:
    """What reads the pairs of a source and makes rows of them."""

    text: TextTokenizer
    bank: Bank
    variables: Mapping[str, Any]
    """The variables of the image tokenizer, the encoder and the bank, on the run's mesh."""


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineLearner:
    """A `DecoderLearner` whose rows are made in its loss from texts and images."""

    experiment: Experiment
    bridge: TokenizerBridge
    encoder: CLIP
    tools: PairTools | None
    """Without them there are no pairs, only a loss to compile."""

    @classmethod
    def from_source(cls, experiment: Experiment) -> "OnlineLearner":
        """A learner with the pairs of `data.source` and the bank `data.bank`.

        Every record is read once; those that are not a pair of a text and an image, or can't be
        read, are left out. Raises `UserError` when tokenizers, encoder or bank are missing or do
        not belong together, and its streams raise it for a pair that does not fit a row.
        """
        text = TextTokenizer.load(experiment.tokenizers.text)
        image = vqgan.load(experiment.tokenizers.image)
        encoder = clip.load(experiment.retrieval.encoder)
        vocab = Vocab(experiment.vocab, text.fingerprint, image.fingerprint)
        bank = Bank.open(experiment.data.bank, encoder.fingerprint, vocab.fingerprint)
        bridge, module = TokenizerBridge(image.config, vocab), CLIP(encoder.config)
        mesh = partition.make_mesh(experiment.mesh)
        variables = {
            **_placed(mesh, bridge, image.variables, module, encoder.variables),
            "bank": bank_variables(bank, mesh, training=True),
        }
        return cls(experiment, bridge, module, PairTools(text, bank, variables))

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the ids."""
        return self.bridge.vocab

    @property
    def decoder(self) -> DecoderLearner:
        """What learns from the rows."""
        return DecoderLearner(self.experiment, self.vocab, {})

    @property
    def builder(self) -> SequenceBuilder:
        """What makes the rows."""
        own = self.experiment
        return SequenceBuilder(own.cm3, self.vocab, own.retrieval.documents, own.model.context)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of the vocabulary and of both tokenizers."""
        return self.vocab.fingerprints

    @property
    def work(self) -> StepCost:
        """The decoder's cost of one global batch."""
        return self.decoder.work

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """The decoder's parameters, boxed with their logical axes."""
        return self.decoder.init(key)

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Mapping[str, Any],
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """The decoder's loss of the batch's `rows`."""
        return self.decoder.loss(params, extra, self.rows(batch).batch, key, step, training)

    def rows(self, batch: Mapping[str, Any]) -> BuiltRows:
        """From pixels and pieces to CM3 rows, one per record; it is traced.

        All draws are those of the epoch in which the batch began.
        """
        pairs = nn.apply(TokenizerBridge.encode_pairs, self.bridge)(
            batch["tokenizer"], batch["pieces"], batch["lengths"], to_pixels(batch["images"])
        )
        vectors = self.encoder.apply(
            batch["encoder"], batch["texts"], normalise_pixels(batch["seen"])
        )
        queries = Queries(
            pairs.ids,
            pairs.lengths,
            document_vectors(*vectors),
            batch["exclude"],
            batch["records"],
        )
        epoch = batch["epochs"].min()
        build = nn.apply(SequenceBuilder.__call__, self.builder)
        return build({"bank": batch["bank"]}, queries, self.experiment.seed, epoch)

    @functools.cache  # noqa: B019 - a learner lives as long as its process
    def stream(self, split: Literal["train", "validation"]) -> Equipped | NoRecords:
        """Pairs of the source, with the tokenizer, the encoder and the bank."""
        pairs = self._pairs(split)
        return NoRecords() if pairs is None else Equipped(pairs, self._tools.variables)

    @property
    def _tools(self) -> PairTools:
        assert self.tools is not None, "a learner without its tools reads no pairs"
        return self.tools

    def _pairs(self, split: Literal["train", "validation"]) -> "OnlineStream | None":
        """The pairs of a split; None where none is held back for validation."""
        data = self.experiment.data
        source = open_source(data, split, self.experiment.seed)
        found = scan(source, _pair, _picture)
        for note in found.notes:
            print(note)
        pairs = found.kept
        if not pairs:
            if split == "validation":
                return None
            raise UserError(
                f"{data.source} has no pairs of a text and an image for {split}; add some, or "
                "prepare a corpus and leave data.online out."
            )
        texts = [self._tools.text.encode(pair.text) for pair in pairs]
        self._require_room(texts, [pair.key for pair in pairs])
        longest = max(map(len, texts))
        length = text_length(longest, self.encoder.config)
        pieces = np.zeros((len(texts), max(1, longest)), np.int32)
        for row, text in zip(pieces, texts, strict=True):
            row[: len(text)] = text
        arrays = {
            "pieces": pieces,
            "lengths": np.asarray([len(text) for text in texts], np.int32),
            "texts": text_rows(texts, self.encoder.config, length),
            "exclude": self._own(pairs),
            "records": found.records.astype(np.int32),
            "row": np.arange(len(texts)),
        }
        marks, bank = [pair.picture for pair in pairs], self._tools.bank
        made_with = {"bank": bank.fingerprint, "encoder": bank.manifest["encoder"]}
        return OnlineStream(
            *(data, self.experiment.seed, arrays, found.pictures, marks),
            *(self.encoder.config, made_with),
        )

    def _own(self, pairs: "Sequence[_Pair]") -> Int[np.ndarray, "M X"]:
        """The bank's rows that a record is not shown: its own and all with its image."""
        bank = self._tools.bank
        own = [
            {bank.rows.get(pair.key, NONE), *bank.showing([pair.picture]).tolist()}
            for pair in pairs
        ]
        exclude = np.full((len(pairs), max(map(len, own))), NONE, np.int32)
        for row, rows in zip(exclude, own, strict=True):
            row[: len(rows)] = sorted(rows, reverse=True)
        return exclude

    def _require_room(self, texts: Sequence[Sequence[int]], keys: Sequence[str]) -> None:
        longest = int(np.argmax([len(text) for text in texts]))
        room = self.experiment.model.context - self.vocab.image_tokens - 3  # <eos>, <break>, <eos>
        if len(texts[longest]) > room:
            raise UserError(
                f"record {keys[longest]!r} of {self.experiment.data.source} has a text of "
                f"{len(texts[longest])} pieces and does not fit a row of model.context="
                f"{self.experiment.model.context}; raise that, or shorten it."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineStream:
    """Shuffled pairs, each image also at the encoder's size."""

    data: DataConfig
    seed: int
    arrays: dict[str, np.ndarray]
    """What is known of each pair but its image; `row` is its number."""
    pictures: RecordPictures
    marks: Sequence[str]
    """Hashes of the images."""
    encoder: ClipConfig
    made_with: Mapping[str, str]
    """Fingerprints of the bank and of the encoder, by name."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of the pairs, the bank and the encoder."""
        whole = digest(*self.arrays.values(), *self.marks)
        parts = {name: digest(array) for name, array in self.arrays.items()}
        parts["pictures"] = digest(*self.marks)
        return marks_of_records(whole, len(self.marks), parts) | dict(self.made_with)

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """This process's share of the batches from `position` on, without end."""
        process = jax.process_index(), jax.process_count()
        stream = RecordStream(self.arrays, self.data.batch, self.seed, *process)
        drawn = with_epochs(stream.batches(position), position)
        if self.pictures.held is not None:
            yield from map(self._made, drawn)
        else:
            yield from ahead(drawn, self._made, self.data.threads)

    def _made(self, drawn: tuple[HostBatch, int]) -> HostBatch:
        batch, epoch = drawn
        data = dict(batch.data)
        images = self.pictures.take(data.pop("row"))
        seen = np.stack([fit_picture(image, self.encoder) for image in images])
        epochs = np.full(len(images), epoch, np.int32)
        data |= {"images": images, "seen": seen, "epochs": epochs}
        return dataclasses.replace(batch, data=data)


class _Pair(NamedTuple):
    """What is kept of a record."""

    key: str
    text: str
    picture: str


def _pair(record: RawRecord) -> _Pair | None:
    match record.segments:
        case (str() as text, np.ndarray()):
            return _Pair(record.key, text, record.pictures[0])
    return None


def _picture(record: RawRecord) -> UInt8[np.ndarray, "Y X 3"]:
    """The image of a pair."""
    return next(segment for segment in record.segments if isinstance(segment, np.ndarray))


def _placed(
    mesh: Mesh,
    bridge: TokenizerBridge,
    tokenizer: Mapping[str, Any],
    encoder: CLIP,
    weights: Mapping[str, Any],
) -> dict[str, Any]:
    """The variables of both modules, spread over the devices of `mesh`."""

    def place(init: Callable, variables: Any, *inputs: Any) -> Any:
        boxed = jax.eval_shape(init, jax.random.key(0), *inputs)
        return jax.device_put(variables, partition.shardings(mesh, boxed))

    sides = bridge.config.image_size, encoder.config.image_size
    picture, other = (jnp.zeros((1, side, side, 3)) for side in sides)
    return {
        "tokenizer": place(bridge.init, tokenizer, picture),
        "encoder": place(encoder.init, weights, jnp.zeros((1, 16), jnp.int32), other),
    }


def bank_variables(bank: Bank, mesh: Mesh | None = None, training: bool = False) -> dict[str, Any]:
    """The collection `bank` of a `SequenceBuilder`, spread over the devices of `mesh`.

    Empty documents fill it up to a multiple of the devices; they are never found. In `training`
    the documents that are held out of it are empty too.
    """
    documents = Documents(bank.lengths, bank.ids, lambda: (d.ids for d in bank.documents()))
    tokens, lengths = documents.padded(np.arange(len(bank)))
    if training:
        lengths = np.where(bank.held_out, np.int32(0), lengths)
    fill = -len(bank) % (mesh.size if mesh else 1)
    arrays = {"tokens": tokens, "lengths": lengths, "vectors": np.asarray(bank.vectors)}
    arrays = {
        name: np.pad(array, [(0, fill)] + [(0, 0)] * (array.ndim - 1))
        for name, array in arrays.items()
    }
    if mesh is None:
        return jax.tree.map(jnp.asarray, arrays)
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
