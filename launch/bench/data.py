"""How fast the input pipeline makes training rows: retrieved documents drawn, rotated, packed.

The corpora are of random pairs, made for the purpose and read from files that the system has just
written, as from a warm cache.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from cm3jax.config import DataConfig, DecoderConfig, Experiment, VocabConfig, VQGANConfig
from cm3jax.data.cm3_rows import RowsConfig
from cm3jax.data.corpus import CorpusDocument, CorpusWriter, Shard
from cm3jax.data.packing import Position
from cm3jax.data.pipeline import CorpusStream, HostBatch
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.sequence.vocab import Vocab

_CAPTION = 10
_SIZES = {75: (8, 20_000, 512), 1035: (32, 4000, 4096)}
"""Codes on an image's side, records, and the row's tokens, by tokens of a document."""
_ROUNDS = 5


def bench_data(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens of samples a second, padding not counted, with two documents in front of each."""
    answer: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "busy_cores_before": os.getloadavg()[0],
    }
    for tokens, (grid, records, context) in _SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            experiment = _experiment(folder, grid, context, options.batch)
            _write(experiment, records)
            answer[str(tokens)] = _time(experiment) | {"records": records, "context": context}
    return answer


def _experiment(folder: str, grid: int, context: int, batch: int) -> Experiment:
    return Experiment(
        name="bench",
        vocab=VocabConfig(grid=grid),
        vqgan=VQGANConfig(image_size=4 * grid, multipliers=(1, 1, 1)),
        model=DecoderConfig(context=context),
        data=DataConfig(corpus=f"{folder}/corpus", bank=f"{folder}/bank", batch=batch),
    )


def _write(experiment: Experiment, records: int) -> None:
    """As many documents in the bank as records in the corpus, each with two neighbours by text and
    two by image."""
    vocab, rng = Vocab(experiment.vocab, "text", "image"), np.random.default_rng(0)

    def pair() -> np.ndarray:
        text = vocab.first_text + rng.integers(0, experiment.vocab.text_pieces, _CAPTION)
        image = vocab.first_image + rng.integers(
            0, experiment.vocab.image_codes, vocab.image_tokens
        )
        return np.concatenate([text, [vocab.break_], image]).astype(np.int32)

    names = [str(number) for number in range(records)]
    shown = [BankDocument(name, pair(), "", True, True, "random", "") for name in names]
    vectors = np.ones((records, 1), np.float32)
    bank = Bank.build(experiment.data.bank, shown, vectors, "", vocab.fingerprint)
    writer = CorpusWriter(f"{experiment.data.corpus}/train", "random")
    shape = (records, experiment.retrieval.views, 2, 2)
    shard = Shard(
        documents=[CorpusDocument(name, "pair", "", pair()) for name in names],
        neighbours=rng.integers(0, records, shape, np.int32),
        scores=rng.random(shape, np.float32),
        refused={},
        selection={},
    )
    writer.write(0, shard)
    about = {
        "vocab": dataclasses.asdict(vocab.config),
        "text_fingerprint": vocab.text_fingerprint,
        "image_fingerprint": vocab.image_fingerprint,
        "bank": bank.fingerprint,
    }
    writer.finish(1, about)


def _time(experiment: Experiment) -> dict[str, Any]:
    """Rates of rounds of a second, after one that warms up and fills what is read ahead."""
    rows = RowsConfig.of(experiment)
    stream = CorpusStream.open(experiment.data, experiment.vocab, rows, "train")
    batches = stream.batches(Position())
    rates = [_round(batches) for _ in range(1 + _ROUNDS)][1:]
    return {"tokens_per_second": statistics.median(rates), "rounds": rates}


def _round(batches: Iterator[HostBatch]) -> float:
    """Tokens of samples a second."""
    start, seconds, tokens = time.perf_counter(), 0.0, 0
    while seconds < 1:
        tokens += int((next(batches).data.segments > 0).sum())
        seconds = time.perf_counter() - start
    return tokens / seconds
