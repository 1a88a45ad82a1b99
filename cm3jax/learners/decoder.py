"""Training the autoregressive decoder on CM3 rows (sections 2.2 to 2.4)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import DecoderConfig, Experiment
from cm3jax.data.pipeline import CorpusStream, Stream
from cm3jax.loss import LossOutput, by_modality, chunks_for, token_losses
from cm3jax.metrics import Work
from cm3jax.model.decoder import Decoder
from cm3jax.sequence import Batch
from cm3jax.shapes import Array, Int, Key
from cm3jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class DecoderLearner:
    """A `Decoder`, its next-token loss and its rows."""

    experiment: Experiment
    vocab: Vocab
    streams: Mapping[Literal["train", "validation"], Stream]

    @classmethod
    def from_corpus(cls, experiment: Experiment) -> "DecoderLearner":
        """Rows and vocabulary of the prepared data; `UserError` as `CorpusStream.open`."""
        train = CorpusStream.open(experiment, "train")
        streams = {"train": train, "validation": CorpusStream.open(experiment, "validation")}
        return cls(experiment, train.vocab, streams)

    @property
    def model(self) -> Decoder:
        """The module."""
        return Decoder(self.experiment.model, self.vocab.size)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the vocabulary and of both tokenizers."""
        return {
            "vocab": self.vocab.fingerprint,
            "text": self.vocab.text_fingerprint,
            "image": self.vocab.image_fingerprint,
        }

    @property
    def work(self) -> Work:
        """Of one global batch."""
        config = self.experiment.model
        tokens = self.experiment.data.batch * config.context
        return Work(tokens, tokens * flops_per_token(config, self.vocab.size))

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """The decoder's parameters, boxed with their logical axes."""
        row = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, row, row, row)

    def loss(
        self, params: Any, extra: Any, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> LossOutput:
        """Weighted mean of the targets' negative log-likelihoods over the global batch, in nats."""
        variables = {"params": params}
        hidden = self.model.apply(variables, batch.tokens, batch.positions, batch.segments)
        rows, length = batch.tokens.shape
        rows = -(-rows // partition.batch_shards(jax.sharding.get_abstract_mesh()))
        losses = token_losses(
            lambda part: self.model.apply(variables, part, method="logits"),
            hidden,
            batch.targets,
            chunks_for(rows, length, self.vocab.size),
        )
        metrics = by_modality(losses, batch.targets, batch.weights, self.vocab)
        total, weight = metrics["loss"]
        return LossOutput(total / jnp.maximum(weight, 1.0), metrics, extra)

    def stream(self, split: Literal["train", "validation"]) -> Stream:
        """Rows of the corpus."""
        return self.streams[split]


def flops_per_token(config: DecoderConfig, vocab_size: int) -> float:
    """Floating-point operations of forward and backward pass per token of a full row.

    6 per weight of a matrix product (the tied head among them, lookups not) and 12 per layer,
    width and context for attention; the causal half that is computed and thrown away counts too.
    """
    projections = 4 * config.heads * config.head_width + 2 * config.ffn
    weights = (config.layers * projections + vocab_size) * config.width
    attention = config.layers * config.heads * config.head_width * config.context
    return 6.0 * weights + 12.0 * attention
