"""The decoder for 256 pixels, whose rows hold three images of 1,024 codes."""

import dataclasses

import numpy as np
import pytest

from cm3jax.config import MeshConfig, TrainConfig
from cm3jax.data.corpus import CorpusDocument, CorpusWriter, Shard
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.sequence.vocab import Vocab
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from experiments.chain import Choices
from experiments.folder.base import chain
from launch.plan import plan


def pair(rng, vocab):
    text = vocab.first_text + rng.integers(0, 300, 30)
    image = vocab.first_image + rng.integers(0, 1024, 1024)
    return np.concatenate([text, [vocab.break_], image]).astype(np.int32)


def write(folder, vocab):
    """A bank of 6 pairs and a corpus of 12, each with two of them for neighbours."""
    rng = np.random.default_rng(0)
    vectors = np.eye(6, 8, dtype=np.float32)
    documents = [
        BankDocument(f"b{n}", pair(rng, vocab), "", True, True, "t", "CC0-1.0") for n in range(6)
    ]
    bank = Bank.build(f"{folder}/bank", documents, vectors, "encoder", vocab.fingerprint)
    for split in ("train", "validation"):
        writer = CorpusWriter(f"{folder}/corpus/{split}", "settings")
        records = [CorpusDocument(f"r{n}", "pair", "CC0-1.0", pair(rng, vocab)) for n in range(12)]
        neighbours = rng.permuted(np.tile(np.arange(6), (12 * 2, 1)), axis=1)[:, :2]
        shape = (12, 1, 2, 2)
        selection = {"seen": 1, "too_relevant": 0, "not_diverse": 0}
        writer.write(
            0,
            Shard(
                records,
                neighbours.reshape(shape).astype(np.int32),
                np.ones(shape, np.float32),
                {},
                selection,
            ),
        )
        facts = {
            "vocab": dataclasses.asdict(vocab.config),
            "vocab_fingerprint": vocab.fingerprint,
            "text_fingerprint": vocab.text_fingerprint,
            "image_fingerprint": vocab.image_fingerprint,
            "bank": bank.fingerprint,
        }
        writer.finish(1, facts)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_256_pixels_and_1024_codes_plan_compile_and_train(tmp_path):
    decoder = chain(Choices(side=256), runs=f"{tmp_path}/runs", data=str(tmp_path))["decoder"]
    assert decoder.vocab.grid**2 == 1024
    decoder = dataclasses.replace(
        decoder,
        mesh=MeshConfig(data=1),
        data=dataclasses.replace(decoder.data, batch=1),  # one row is what two cores can bear
        train=TrainConfig(steps=10, log_every=1, validate_every=0, samples=0),
    )
    answer, _ = plan(decoder, compiles=True)
    assert answer["tokens_per_step"] == decoder.model.context == 3328
    assert answer["compiled_bytes_per_device"]["temporaries"] < 2e9
    write(tmp_path, Vocab(decoder.vocab, "text", "image"))
    learner = DecoderLearner.from_corpus(decoder)
    (said,) = learner.stream("train").notes
    assert "do not fit" not in said  # two documents and the query stand in a row
    assert int(train(learner).step) == 10
    losses = [line["loss_image"] for line in read_metrics(decoder.run_dir)]
    assert len(losses) == 10
    # Random codes: nothing is to be learnt but how many there are.
    assert losses[0] > np.log(1024)
    assert all(np.isfinite(losses))
