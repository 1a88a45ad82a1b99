"""Training the autoregressive decoder on CM3 rows (sections 2.2 to 2.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import DecoderConfig, Experiment, LossConfig
from cm3jax.data.cm3_rows import CorpusRows, RowsConfig
from cm3jax.data.document_probe import document_probes
from cm3jax.data.pipeline import CorpusStream, HostBatch, Stream
from cm3jax.data.stages import StagedStream
from cm3jax.model import embeddings
from cm3jax.model.decoder import Decoder
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import AnyArray, Array, Float, Int, Key
from cm3jax.training.loss import LossOutput, Mean, chunks_for, next_token_loss, token_losses
from cm3jax.training.metrics import StepCost
from cm3jax.training.precision import quantised


@dataclasses.dataclass(frozen=True)
class DecoderLearner:
    """A `Decoder`, its next-token loss and its rows."""

    experiment: Experiment
    vocab: Vocab
    streams: Mapping[Literal["train", "validation"], Stream]

    @classmethod
    def from_corpus(cls, experiment: Experiment) -> "DecoderLearner":
        """Rows and vocabulary of the prepared data; `UserError` as `CorpusStream.open`."""
        e, rows = experiment, RowsConfig.of(experiment)
        train = CorpusStream.open(e.data, e.vocab, rows, "train")
        held_back = CorpusStream.open(e.data, e.vocab, rows, "validation")
        staged = StagedStream(train, e.curriculum) if e.curriculum.changes_rows else train
        return cls(e, train.vocab, {"train": staged, "validation": held_back})

    @property
    def model(self) -> Decoder:
        """The module."""
        e = self.experiment
        config = dataclasses.replace(e.model, quantised="")  # as validation computes
        return Decoder(config, self.vocab.size, e.one_segment)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the vocabulary and of both tokenizers."""
        return self.vocab.fingerprints

    @property
    def work(self) -> StepCost:
        """The cost of one global batch."""
        return decoder_work(self.experiment.model, self.experiment.data.batch, self.vocab.size)

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """The decoder's parameters, boxed with their logical axes."""
        row = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, row, row, row)

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """Weighted mean of the targets' negative log-likelihoods over the global batch, in nats.

        A z-loss is added as the config says; dropout applies only in training.
        """
        e, variables = self.experiment, {"params": params}
        drop = key if training and e.model.dropout else None
        kind = e.model.quantised if training else ""
        model: Any = quantised(self.model, kind)
        hidden = model.apply(variables, batch.tokens, batch.positions, batch.segments, drop)
        loss, metrics = loss_of_targets(
            params, hidden, batch.targets, batch.weights, self.vocab, e.model, e.loss
        )
        return LossOutput(loss, metrics, extra)

    def document_probes(self) -> Mapping[str, Sequence[HostBatch]]:
        """Held-out records behind no, retrieved, right and wrong documents; for a mixture, those of
        its first corpus. Empty where none are held back.
        """
        stream = self.streams["validation"]
        if not isinstance(stream, CorpusStream):
            return {}
        return document_probes(stream.corpora[0], self.experiment.data.batch, stream.share)

    def corpora(self, split: Literal["train", "validation"]) -> Sequence[CorpusRows]:
        """The corpora of a split; none where nothing is held back."""
        stream = self.streams[split]
        return stream.corpora if isinstance(stream, CorpusStream | StagedStream) else ()

    def stream(self, split: Literal["train", "validation"]) -> Stream:
        """Rows of the corpus."""
        return self.streams[split]


def decoder_work(config: DecoderConfig, rows: int, vocab_size: int) -> StepCost:
    """Tokens and operations of one global batch of full rows."""
    tokens = rows * config.context
    return StepCost(tokens, tokens * flops_per_token(config, vocab_size))


def flops_per_token(config: DecoderConfig, vocab_size: int) -> float:
    """Floating-point operations of forward and backward pass per token of a full row.

    6 per weight of a matrix product (the head among them, lookups not) and 12 per layer, width of
    all query heads and context for attention; the causal half counts in full, though the backends
    skip most of what they would throw away.
    """
    tables = vocab_size + (config.width if config.token_shift else 0)
    weights = config.layers * config.layer_weights + tables * config.width
    attention = config.layers * config.heads * config.head_width * config.context
    return 6.0 * weights + 12.0 * attention


def loss_of_targets(
    params: Any,
    hidden: Float[Array, "B L D"],
    targets: Int[AnyArray, "B L"],
    weights: Float[AnyArray, "B L"],
    vocab: Vocab,
    model: DecoderConfig,
    config: LossConfig,
) -> tuple[Float[Array, ""], Mapping[str, Mean]]:
    """Loss and metrics of final states by the model's table, in pieces that fit the current mesh.

    As `training.loss.next_token_loss`.
    """
    rows, length = targets.shape
    rows = -(-rows // partition.batch_shards(jax.sharding.get_abstract_mesh()))
    chunks = chunks_for(rows, length, vocab.size)
    table = embeddings.head_of(params, model)
    losses = token_losses(embeddings.logits, table, hidden, targets, chunks)
    return next_token_loss(losses, targets, weights, vocab, config)
