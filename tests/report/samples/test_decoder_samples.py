"""A decoder's report, by the real command on a tiny chain of runs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.config import DataConfig, MeshConfig, TrainConfig
from cm3jax.data.corpus import CorpusDocument, CorpusWriter, Shard
from cm3jax.data.show import pieces
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.report.samples.decoder_samples import decoder_illustrator
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import mark, mark_of
from cm3jax.retrieval.pages import GONE, blank_html
from cm3jax.sequence.document import render
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Modality
from cm3jax.tokenizers.image_tokenizer import load_picture
from cm3jax.training.state import TrainState
from launch.train import train_experiment
from tests.data import corpora
from tests.pages import require_sound

RECORDS = 200


def write_corpus(path, bank):
    vocab = testing.vocab()
    facts = {
        "vocab": dataclasses.asdict(vocab.config),
        "text_fingerprint": vocab.text_fingerprint,
        "image_fingerprint": vocab.image_fingerprint,
        "bank": bank.fingerprint,
    }
    for split in ("train", "validation"):
        ids = [render(document, vocab) for document in testing.documents(RECORDS, seed=7)]
        neighbours = np.arange(RECORDS * 4).reshape(RECORDS, 1, 2, 2) % len(bank)
        shard = Shard(
            [CorpusDocument(f"r{i}", "pair", "CC0-1.0", part) for i, part in enumerate(ids)],
            neighbours.astype(np.int32),
            np.zeros(neighbours.shape, np.float32),
            refused={},
            selection={},
        )
        writer = CorpusWriter(path / "corpus" / split, "this")
        writer.write(0, shard)
        writer.finish(1, facts)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain")
    testing.write_chain(path)
    write_corpus(path, Bank.open(path / "bank"))
    return dataclasses.replace(
        testing.experiment(),
        workdir=str(path / "run"),
        data=DataConfig(corpus=str(path / "corpus"), bank=str(path / "bank"), batch=8),
        retrieval=dataclasses.replace(testing.experiment().retrieval, documents=1),
        train=TrainConfig(steps=2, log_every=1, validate_every=2, validation_batches=1, samples=3),
        mesh=MeshConfig(data=1),
        # Without a grammar an untrained model would draw no whole image.
        decode=dataclasses.replace(testing.experiment().decode, grammar=False),
    )


@pytest.mark.slow  # it trains, draws and reports
def test_a_run_shows_a_row_and_draws(config):
    train_experiment(config)
    page = (Path(config.workdir) / "report.html").read_text()
    require_sound(page)
    for part in ("A training row", "&lt;eos&gt;", "&lt;break&gt;", "piece asked", "Samples"):
        assert part in page
    assert any(caption in page for caption in testing.CAPTIONS)
    drawn = sorted((Path(config.workdir) / "samples" / "2").iterdir())
    assert len(drawn) == 3
    shown = {path.stem: load_picture(path, 16) for path in drawn}

    # Those of the parameters at that step: from the checkpoint come the same.
    learner, run = DecoderLearner.from_corpus(config), load_run(config.workdir)
    row, samples = decoder_illustrator(learner)(TrainState(2, run.variables["params"], None, {}))
    assert samples.pictures.keys() == shown.keys()
    for name, picture in samples.pictures.items():
        np.testing.assert_array_equal(picture, shown[name])
    # A takedown finds whatever shows a document.
    marks = {mark_of(document) for document in Bank.open(config.data.bank).documents()}
    for drawn in (row, samples):
        blank, count = blank_html(drawn.body, marks)
        assert blank.count(GONE) == count
        assert "<span>document</span>" not in blank
        assert "    document " not in blank
    assert count > 0  # of the samples
    # The row's own records are the bank's, too.
    corpus = learner.stream("train").corpora[0].corpus
    records = map(corpus.document, range(len(corpus)))
    blank, count = blank_html(row.body, {mark(one.key, one.ids) for one in records})
    assert (blank.count(GONE), count) == (1, 1)
    assert "piece asked" not in blank


def test_without_its_tokenizers_it_says_so(tmp_path):
    bank = corpora.write_bank(tmp_path)
    for split in ("train", "validation"):
        corpora.write_corpus(tmp_path, bank, 12, 1, split)
    config = dataclasses.replace(corpora.experiment(tmp_path), workdir=str(tmp_path / "run"))
    (absent,) = decoder_illustrator(DecoderLearner.from_corpus(config))(None)
    assert "no text tokenizer" in absent.body
    assert not absent.pictures


def test_pieces_know_their_place_in_the_picture():
    vocab = corpora.VOCAB
    text, code = vocab.first_text, vocab.first_image
    mask = [vocab.sentinel(number) for number in range(2)]
    eos, break_, eoss = vocab.eos, vocab.break_, vocab.eoss
    # The design's example "mask both": the caption and the codes 1 and 2 are at the end.
    ids = [eos, mask[0], break_, code, mask[1], code + 3, eos]
    ids += [mask[0], text, text + 1, eoss, mask[1], code + 1, code + 2, eoss]
    ids = np.asarray([*ids, vocab.pad], np.int32)
    weights = np.asarray([0, 1, 1, 0] + [1] * 10 + [0], np.float32)
    segments = np.ones(15, np.int32)
    batch = Batch(*(row[None] for row in (ids[:-1], ids[1:], weights, segments, segments)))
    (sample,) = pieces(batch, vocab)
    assert sum((piece.ids for piece in sample), ()) == tuple(ids[:-1])
    shown = [
        (piece.place, len(piece.ids), piece.weight)
        for piece in sample
        if piece.kind == Modality.IMAGE
    ]
    assert shown == [(0, 1, 1), (3, 1, 1), (1, 2, 1)]
    placed = [piece.weight for piece in sample if piece.ids == (mask[1],)]
    assert placed == [0, 1]
