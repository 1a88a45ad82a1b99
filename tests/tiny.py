"""A decoder of 20,000 parameters on made-up rows, for tests of the trainer."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from cm3jax.config import (
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    Experiment,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.data.pipeline import HostBatch, Position
from cm3jax.io.files import digest
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Vocab

VOCAB = Vocab(VocabConfig(specials=32, image_codes=64, text_pieces=32, sentinels=17, grid=2))


def experiment(workdir: str, **fields: Any) -> Experiment:
    """A tiny experiment; `fields` replace those of `Experiment`."""
    defaults: dict[str, Any] = {
        "name": "tiny",
        "workdir": str(workdir),
        "vocab": VOCAB.config,
        "vqgan": VQGANConfig(image_size=4, patch=2, multipliers=(1,), codes=64),
        "model": DecoderConfig(
            layers=2,
            width=32,
            heads=2,
            head_width=16,
            ffn=64,
            context=16,
            dtype="float32",
            init_std=0.05,
        ),
        "data": DataConfig(batch=8),
        "optim": OptimConfig(peak_lr=1e-2, warmup_steps=5, weight_decay=0.0),
        "train": TrainConfig(steps=8, log_every=1, validate_every=4, validation_batches=2),
        "checkpoint": CheckpointConfig(every=4),
        "mesh": MeshConfig(data=1),
    }
    return Experiment(**defaults | fields)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A function of the position: row i of epoch 0 repeats after `distinct` rows."""

    batch: int
    length: int
    distinct: int = 1 << 20

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"rows": digest(repr(self))}

    def batches(self, position: Position) -> Iterator[HostBatch]:
        row = position.row
        while True:
            ids = np.stack([self._row((row + i) % self.distinct) for i in range(self.batch)])
            row += self.batch
            tokens, targets = ids[:, :-1], ids[:, 1:]
            ones = np.ones_like(tokens)
            places = np.broadcast_to(np.arange(self.length, dtype=np.int32), tokens.shape)
            batch = Batch(tokens, targets, ones.astype(np.float32), ones, places)
            yield HostBatch(batch, Position(0, 0, row), digest(ids))

    def _row(self, index: int) -> np.ndarray:
        generator = np.random.default_rng(index)
        return generator.integers(VOCAB.first_image, VOCAB.size, self.length + 1).astype(np.int32)


def learner(config: Experiment, vocab: Vocab = VOCAB, **rows) -> DecoderLearner:
    """The decoder on `Rows`."""
    stream = Rows(config.data.batch, config.model.context, **rows)
    return DecoderLearner(config, vocab, {"train": stream, "validation": stream})
