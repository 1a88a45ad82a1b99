"""Rows that are made in the step cost what the prepared corpus's rows cost."""

import dataclasses
import functools
import json

import jax
import numpy as np
import PIL.Image
import pytest

from cm3jax import partition, testing
from cm3jax.config import (
    CM3Config,
    DataConfig,
    MeshConfig,
    OptimConfig,
    RetrievalConfig,
    TokenizersConfig,
    TrainConfig,
)
from cm3jax.data.cm3_rows import CorpusRows, RowsConfig
from cm3jax.data.corpus import CorpusDocument, CorpusWriter, Shard
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.learners import clip
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.learners.online import OnlineLearner, bank_variables
from cm3jax.model.decoder import Decoder
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.sequence.document import Image, Text, render
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from launch.train import make_illustrator, make_learner
from tests.data import corpora

RECORDS = 16
DOCUMENTS = 1
"""Of several, a prepared row has an order that was drawn, and one made online the best first."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tokenizers, an encoder, a bank, and a folder of the bank's own documents under its keys."""
    path = tmp_path_factory.mktemp("online")
    testing.write_chain(path, bank_size=RECORDS)
    lines = []
    for number, picture in enumerate(testing.pictures(RECORDS, seed=1)):
        PIL.Image.fromarray(picture).save(path / f"tiny-{number}", format="PNG")
        caption = testing.CAPTIONS[number % len(testing.CAPTIONS)]
        lines.append(json.dumps({"file": f"tiny-{number}", "caption": caption}) + "\n")
    (path / "captions.jsonl").write_text("".join(lines))
    return path


def experiment(home, **fields):
    values = {
        "tokenizers": TokenizersConfig(text=str(home / "text"), image=str(home / "vqgan")),
        "retrieval": RetrievalConfig(encoder=str(home / "clip"), documents=DOCUMENTS),
        "data": DataConfig(
            source=str(home),
            splits=((".", "train"),),
            bank=str(home / "bank"),
            image_size=16,
            batch=RECORDS,
            online=True,
        ),
        "mesh": MeshConfig(data=1),
    }
    return dataclasses.replace(testing.experiment(), **values | fields)


@pytest.fixture(scope="module")
def prepared(home):
    """The rows of a corpus with the nearest other document as every record's neighbour."""
    pictures = testing.pictures(RECORDS, seed=1)
    texts = [testing.CAPTIONS[i % len(testing.CAPTIONS)] for i in range(RECORDS)]
    codes = testing.image_tokenizer().encode(pictures).tolist()
    pieces = map(testing.text_tokenizer().encode, texts)
    pairs = ((Text(tuple(p)), Image(tuple(c))) for p, c in zip(pieces, codes, strict=True))
    ids = [np.asarray(render(pair, testing.vocab()), np.int32) for pair in pairs]
    bank, encoder = Bank.open(home / "bank"), clip.load(home / "clip")
    vectors = encoder.encode_documents(list(zip(texts, pictures, strict=True)))
    found = ExactIndex(bank.vectors).search(vectors, RECORDS)
    neighbours = np.full((RECORDS, 1, 2, DOCUMENTS), -1, np.int32)
    scores = np.full(neighbours.shape, -np.inf, np.float32)
    for record in range(RECORDS):
        others = found.ids[record] != record
        assert not others[0], "a document is nearest to itself"
        neighbours[record, 0, 0] = found.ids[record][others][:DOCUMENTS]
        scores[record, 0, 0] = found.scores[record][others][:DOCUMENTS]
    documents = [CorpusDocument(f"tiny-{i}", "pair", "CC0-1.0", ids[i]) for i in range(RECORDS)]
    selection = {"seen": RECORDS, "too_relevant": 0, "irrelevant": 0, "not_diverse": 0}
    writer = CorpusWriter(home / "corpus/train", "this")
    writer.write(0, Shard(documents, neighbours, scores, {}, selection))
    vocab = testing.vocab()
    facts = {
        "vocab": dataclasses.asdict(vocab.config),
        "text_fingerprint": vocab.text_fingerprint,
        "image_fingerprint": vocab.image_fingerprint,
        "bank": bank.fingerprint,
    }
    writer.finish(1, facts)
    rows = CorpusRows.open(
        RowsConfig.of(experiment(home)),
        experiment(home).vocab,
        home / "corpus/train",
        home / "bank",
    )
    return rows.build(rows.plan(0, 0))


@functools.cache
def params():
    vocab = testing.vocab()
    return testing.decoder_variables(Decoder(testing.experiment().model, vocab.size))["params"]


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str
)
def test_from_pixels_to_the_loss_of_the_prepared_corpus(home, prepared, sizes):
    config = experiment(home, mesh=MeshConfig(*sizes))
    vocab = testing.vocab()
    host = DecoderLearner(config, vocab, {})
    batch = jax.tree.map(jax.numpy.asarray, prepared)
    expected = jax.jit(host.loss)(params(), {}, batch, jax.random.key(0), jax.numpy.int32(0))

    learner = make_learner(config)
    mesh = partition.make_mesh(config.mesh)
    data = next(learner.stream("train").batches(Position())).data
    own = {name: data.pop(name) for name in ("tokenizer", "encoder", "bank")}
    data = jax.device_put(data, partition.batch_sharding(mesh)) | own
    shapes = jax.eval_shape(learner.init, jax.random.key(0))["params"]
    placed = jax.device_put(params(), partition.shardings(mesh, shapes))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda params, data: _loss_and_rows(learner, params, data))
        output, rows = program(placed, data)
    assert learner.fingerprints == vocab.fingerprints
    assert float(output.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    for name in ("loss", "loss_text", "loss_image"):
        ours, theirs = output.metrics[name], expected.metrics[name]
        assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-5)
        assert float(ours[1]) == float(theirs[1]) > 0
    shown = np.asarray(rows.ids)
    assert not (shown == np.asarray(data["records"])[:, None]).any(), "none is shown itself"
    assert 0 < (shown >= 0).sum() < shown.size


def _loss_and_rows(learner, params, data):
    key = jax.random.key(0)
    return learner.loss(params, {}, data, key, jax.numpy.int32(0)), learner.rows(data)


@pytest.mark.slow
def test_it_trains_and_saves_only_the_decoder(home, tmp_path):
    config = experiment(
        home,
        workdir=str(tmp_path / "run"),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=1),
        train=TrainConfig(steps=20, log_every=1, validate_every=0),
    )
    state = train(make_learner(config))
    losses = [line["loss"] for line in read_metrics(config.run_dir)]
    assert losses[-1] < losses[0] - 1
    assert state.extra == {}
    assert jax.tree.structure(state.params) == jax.tree.structure(params())
    (absent,) = make_illustrator(OnlineLearner.from_source(config))(state)
    assert "made in the step" in absent.body


def test_what_is_held_out_is_never_found_in_training(tmp_path):
    bank = corpora.write_bank(tmp_path, documents=4)
    documents = [
        dataclasses.replace(document, held_out=row == 2)
        for row, document in enumerate(bank.documents())
    ]
    other = Bank.build(tmp_path / "other", documents, bank.vectors, "encoder", "vocab")
    lengths = np.asarray(bank_variables(other)["lengths"])
    assert (lengths > 0).all()
    seen = bank_variables(other, training=True)["lengths"]
    assert seen.tolist() == [*lengths[:2], 0, lengths[3]]


def test_says_what_does_not_fit(home):
    with pytest.raises(UserError, match=r"data\.online makes the rows of a decoder"):
        experiment(home, optim=OptimConfig(accumulate=2))
    for field in ({"wrong_documents": 0.5}, {"shuffle_documents": True}):
        with pytest.raises(UserError, match=r"leave cm3\.wrong_documents"):
            experiment(home, cm3=CM3Config(**field))
    short = dataclasses.replace(testing.experiment().model, context=16)
    with pytest.raises(UserError, match=r"does not fit a row of model\.context=16"):
        OnlineLearner.from_source(experiment(home, model=short)).stream("train")
    assert not list(
        OnlineLearner.from_source(experiment(home)).stream("validation").batches(Position())
    )
    data = dataclasses.replace(experiment(home).data, splits=((".", "validation"),))
    with pytest.raises(UserError, match="no pairs of a text and an image for train"):
        OnlineLearner.from_source(experiment(home, data=data)).stream("train")
