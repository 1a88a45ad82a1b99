"""Small corpora and banks written by the real writers, from random documents."""

import dataclasses
from typing import Literal

import numpy as np

from cm3jax.config import (
    CM3Config,
    DataConfig,
    DecoderConfig,
    Experiment,
    RetrievalConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.data.cm3_rows import RowsConfig
from cm3jax.data.corpus import Corpus, CorpusDocument, CorpusWriter, Shard
from cm3jax.data.pipeline import CorpusStream, NoRecords
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.sequence.vocab import Vocab

VOCAB = Vocab(
    VocabConfig(specials=32, image_codes=64, text_pieces=50, sentinels=17, grid=2), "text", "image"
)


def experiment(path, **data) -> Experiment:
    defaults = DataConfig(corpus=f"{path}/corpus", bank=f"{path}/bank", batch=8)
    return Experiment(
        name="tiny",
        vocab=VOCAB.config,
        vqgan=VQGANConfig(image_size=4, multipliers=(1, 1), codes=64),
        model=DecoderConfig(layers=1, width=8, heads=1, head_width=8, ffn=8, context=64),
        retrieval=RetrievalConfig(documents=2),
        cm3=CM3Config(retrieved_weight=0.5),
        data=dataclasses.replace(defaults, **data),
    )


def pair(rng, longest=12):
    """A random caption and image in ids."""
    text = VOCAB.first_text + rng.integers(0, 50, rng.integers(1, longest))
    image = VOCAB.first_image + rng.integers(0, 64, 4)
    return np.concatenate([text, [VOCAB.break_], image]).astype(np.int32)


def write_bank(path, documents=30) -> Bank:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((documents, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Bank.build(
        f"{path}/bank",
        [
            BankDocument(f"bank-{i}", pair(rng), "", True, True, "test", "CC0-1.0")
            for i in range(documents)
        ],
        vectors,
        "encoder",
        VOCAB.fingerprint,
    )


def shard(records: range, bank: int) -> Shard:
    rng = np.random.default_rng(records.start)
    shape = (len(records), 2, 2, 2)
    return Shard(
        documents=[
            CorpusDocument(
                f"record-{i}",
                "scene" if i % 3 else "pair",
                ("CC0-1.0", "CC-BY-4.0")[i % 2],
                pair(rng),
            )
            for i in records
        ],
        neighbours=rng.integers(-1, bank, shape).astype(np.int32),
        scores=rng.random(shape, np.float32),
        refused={f"refused-{records.start}": "it is empty"},
        selection={"seen": 10, "too_relevant": 1, "not_diverse": 0},
    )


def write_corpus(path, bank: Bank, records=300, shards=3, split="train") -> Corpus:
    writer = CorpusWriter(f"{path}/corpus/{split}", "this")
    size = records // shards
    for number in range(shards):
        writer.write(number, shard(range(number * size, (number + 1) * size), len(bank)))
    writer.finish(shards, facts(bank))
    return Corpus.open(writer.path)


def facts(bank: Bank) -> dict:
    return {
        "vocab": dataclasses.asdict(VOCAB.config),
        "text_fingerprint": VOCAB.text_fingerprint,
        "image_fingerprint": VOCAB.image_fingerprint,
        "bank": bank.fingerprint,
    }


def corpus_stream(
    config: Experiment, split: Literal["train", "validation"]
) -> CorpusStream | NoRecords:
    """The stream that a decoder of this experiment trains or is validated on."""
    return CorpusStream.open(config.data, config.vocab, RowsConfig.of(config), split)
