"""Training the encoder-decoder on captions and images (Parti, arXiv 2206.10789)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from cm3jax.config import DecoderConfig, Experiment
from cm3jax.data.caption_image import CaptionImageStream, Pairs
from cm3jax.data.pipeline import Stream
from cm3jax.learners.decoder import loss_of_targets
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Int, Key
from cm3jax.training.loss import LossOutput
from cm3jax.training.metrics import StepCost


@dataclasses.dataclass(frozen=True)
class PartiLearner:
    """An `EncoderDecoder`, its next-code loss and its pairs."""

    experiment: Experiment
    vocab: Vocab
    streams: Mapping[Literal["train", "validation"], Stream]

    @classmethod
    def from_corpus(cls, experiment: Experiment) -> "PartiLearner":
        """Pairs and vocabulary of the corpus `data.corpus`; `UserError` as
        `CaptionImageStream.open`."""
        e = experiment
        train, validation = (
            CaptionImageStream.open(e.data, e.vocab, e.parti, e.seed, split)
            for split in ("train", "validation")
        )
        return cls(e, train.corpus.vocab, {"train": train, "validation": validation})

    @property
    def model(self) -> EncoderDecoder:
        """The module."""
        e = self.experiment
        sizes = (e.parti.encoder_layers, self.vocab.size, e.parti.text_tokens)
        return EncoderDecoder(e.model, *sizes, self.vocab.image_tokens)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the vocabulary and of both tokenizers."""
        return self.vocab.fingerprints

    @property
    def work(self) -> StepCost:
        """The cost of one global batch."""
        model, rows = self.model, self.experiment.data.batch
        tokens = model.text_tokens + model.image_tokens
        return StepCost(rows * tokens, rows * flops_per_pair(model))

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """The parameters, boxed with their logical axes."""
        row = jnp.zeros((1, 1), jnp.int32)
        return self.model.init(key, row, row == 0, row)

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Pairs,
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """Mean negative log-likelihood of the codes over the global batch, in nats.

        A z-loss is added as the config says; dropout applies only in training.
        """
        e, variables = self.experiment, {"params": params}
        drop = key if training and e.model.dropout else None
        # The decoder starts from `eos` and reads each code to give the next.
        tokens = jnp.pad(batch.codes[:, :-1], ((0, 0), (1, 0)), constant_values=self.vocab.eos)
        there = batch.texts != Vocab.pad
        model = self.model
        forward = nn.apply(EncoderDecoder.__call__, model)
        hidden = forward(variables, batch.texts, there, tokens, drop)
        loss, metrics = loss_of_targets(
            params, hidden, batch.codes, batch.weights, self.vocab, e.model, e.loss
        )
        return LossOutput(loss, metrics, extra)

    def stream(self, split: Literal["train", "validation"]) -> Stream:
        """Pairs of the corpus."""
        return self.streams[split]


def flops_per_pair(model: EncoderDecoder) -> float:
    """Floating-point operations of forward and backward pass per caption and image.

    Counted as `learners.decoder.flops_per_token` counts: 6 per weight and token that meets it, 12
    per score of an attention and head channel.
    """
    config, text, image = model.config, model.text_tokens, model.image_tokens
    weights = config.layer_weights
    of_text, of_image = cross_weights(config)
    encoder = model.encoder_layers * weights * text
    decoder = config.layers * ((weights + of_image) * image + of_text * text)
    head = model.vocab_size * config.width * image
    scores = model.encoder_layers * text * text + config.layers * image * (image + text)
    return 6.0 * (encoder + decoder + head) + 12.0 * config.heads * config.head_width * scores


def cross_weights(config: DecoderConfig) -> tuple[int, int]:
    """How many weights of a layer's cross-attention multiply a token of text, and a code."""
    per_head = 2 * config.head_width * config.width
    return config.groups * per_head, config.heads * per_head
