"""The encoder-decoder: its pairs, its masks, its loss, and that it learns."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3jax.config import (
    CheckpointConfig,
    DecoderConfig,
    MeshConfig,
    OptimConfig,
    PartiConfig,
    TrainConfig,
)
from cm3jax.data.pairs import Pairs, PairStream, split_documents
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.learners.parti import PartiLearner, flops_per_pair
from cm3jax.metrics import read
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.testing import random_variables
from cm3jax.train import train
from tests.data import corpora
from tests.data.corpora import VOCAB

CONFIG = DecoderConfig(
    layers=2, width=32, heads=4, head_width=8, ffn=64, dtype="float32", init_std=0.05
)
RELATIVE = dataclasses.replace(
    CONFIG, positions="rope", qk_norm=True, norm="rms", activation="swiglu", kv_heads=2, tied=False
)


def experiment(path, **fields):
    """A tiny `parti` over the corpus in `path`."""
    base = corpora.experiment(path)
    fields = {"parti": PartiConfig(1, text_tokens=13, drop_captions=0.25)} | fields
    return dataclasses.replace(base, learner="parti", model=CONFIG, **fields)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs")
    bank = corpora.write_bank(path)
    for split in ("train", "validation"):
        corpora.write_corpus(path, bank, records=16, shards=1, split=split)
    return path


@pytest.fixture(scope="module", params=[CONFIG, RELATIVE], ids=["learned", "rope"])
def model(request):
    return EncoderDecoder(request.param, 1, VOCAB.size, 6, VOCAB.image_tokens)


@pytest.fixture(scope="module")
def variables(model):
    row = jnp.zeros((1, 1), jnp.int32)
    return random_variables(model.init, row, row == 0, row)


def hidden(model, variables, texts, codes, length=None):
    texts, codes = jnp.asarray([texts]), jnp.asarray([codes])
    there = jnp.arange(texts.shape[1])[None] < (length or texts.shape[1])
    return np.asarray(model.apply(variables, texts, there, codes))[0]


def test_first_text_and_first_picture_of_a_document():
    text, image, other = VOCAB.first_text, VOCAB.first_image, VOCAB.break_
    codes = [image + i for i in (5, 6, 7, 8)]
    documents = [
        [text + 1, text + 2, other, *codes],
        [*codes, other, text + 3, text + 4, text + 5, text + 6],
        [text + 7, other, *codes, other, text + 8, other, *codes],
        [text + 9, 0, 0],
    ]
    width = max(map(len, documents))
    ids = np.asarray([row + [0] * (width - len(row)) for row in documents], np.int32)
    pairs = split_documents(ids, VOCAB, text_tokens=4)
    eos = VOCAB.eos
    assert pairs.texts.tolist() == [
        [text + 1, text + 2, eos, 0],
        [text + 3, text + 4, text + 5, eos],  # cut
        [text + 7, eos, 0, 0],
        [text + 9, eos, 0, 0],
    ]
    assert pairs.codes.tolist() == [codes, codes, codes, [0] * 4]
    assert pairs.weights.tolist() == [[1.0] * 4] * 3 + [[0.0] * 4]
    bare = split_documents(np.asarray([codes], np.int32), VOCAB, text_tokens=4)
    assert bare.texts.tolist() == [[eos, 0, 0, 0]]


def test_captions_are_dropped_by_seed_epoch_and_record_in_training_alone(path):
    config = experiment(path)
    bare = [VOCAB.eos] + [0] * 12

    def epochs(stream, count):
        batches = stream.batches(Position())
        rows = [next(batches).data for _ in range(2 * count)]  # 16 records in batches of 8
        return np.concatenate([pairs.texts for pairs in rows])

    texts = epochs(PairStream.open(config, "train"), 40)
    dropped = (texts == bare).all(1)
    assert dropped.mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(texts, epochs(PairStream.open(config, "train"), 40))
    assert not (epochs(PairStream.open(config, "validation"), 4) == bare).all(1).any()
    whole = next(PairStream.open(config, "train").batches(Position())).data
    corpus = PairStream.open(config, "train").corpus
    halves = [PairStream(config, corpus, 0.25, i, 2).batches(Position()) for i in range(2)]
    shares = [next(half).data for half in halves]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_another_vocabulary_is_refused(path):
    config = experiment(path)
    other = dataclasses.replace(config.vocab, text_pieces=49)
    with pytest.raises(UserError, match="make them equal"):
        PairStream.open(dataclasses.replace(config, vocab=other), "train")


def test_codes_see_earlier_codes_and_the_whole_text(model, variables):
    texts, codes = [50, 60, 70, 80, 90], [40, 41, 42, 43]
    states = hidden(model, variables, texts, codes)
    later = hidden(model, variables, texts, [40, 41, 45, 43])
    changed = np.abs(states - later).max(-1)
    assert not changed[:2].any()
    assert (changed[2:] > 1e-3).all()
    for place in range(5):  # the encoder looks both ways
        text = list(texts)
        text[place] += 1
        assert (np.abs(hidden(model, variables, text, codes) - states).max(-1) > 1e-3).all()
    swapped = hidden(model, variables, [60, 50, 70, 80, 90], codes)
    assert (np.abs(swapped - states).max(-1) > 1e-3).all()


def test_padding_of_the_text_is_not_seen(model, variables):
    codes = [40, 41, 42, 43]
    states = hidden(model, variables, [50, 60, 70], codes)
    padded = hidden(model, variables, [50, 60, 70, 0, 0, 0], codes, length=3)
    np.testing.assert_allclose(padded, states, atol=1e-5)


def test_loss_is_that_of_each_code_after_the_earlier_ones(path):
    learner = PartiLearner.from_corpus(experiment(path))
    row = jnp.zeros((1, 1), jnp.int32)
    params = random_variables(learner.model.init, row, row == 0, row)["params"]
    pairs = next(learner.stream("validation").batches(Position())).data
    weights = np.asarray([[1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]], np.float32)
    pairs = Pairs(*map(jnp.asarray, (pairs.texts[:2], pairs.codes[:2], weights)))
    output = learner.loss(params, {}, pairs, jax.random.key(0), jnp.int32(0))
    before = jnp.pad(pairs.codes[:, :-1], ((0, 0), (1, 0)), constant_values=VOCAB.eos)
    variables = {"params": params}
    states = learner.model.apply(variables, pairs.texts, pairs.texts != 0, before)
    logits = learner.model.apply(variables, states, method="logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, pairs.codes)
    expected = (np.asarray(losses) * weights).sum() / weights.sum()
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)
    assert output.metrics["loss_image"].compute() == pytest.approx(expected, rel=1e-5)


def test_every_parameter_has_logical_axes(model):
    row = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), row, row == 0, row)
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves)


def test_flops_by_hand():
    config = DecoderConfig(layers=3, width=8, heads=2, head_width=4, ffn=16)
    model = EncoderDecoder(config, 2, vocab_size=100, text_tokens=5, image_tokens=7)
    layer = 4 * 64 + 2 * 128
    encoder = 2 * (6 * layer * 5 + 12 * 8 * 5 * 5)
    own = 6 * layer * 7 + 12 * 8 * 7 * 7
    cross = 6 * (2 * 64 * 7 + 2 * 64 * 5) + 12 * 8 * 7 * 5
    assert flops_per_pair(model) == encoder + 3 * (own + cross) + 6 * 800 * 7


def test_memorises_pictures_by_their_captions(path, tmp_path):
    config = experiment(
        path,
        workdir=str(tmp_path),
        parti=PartiConfig(1, text_tokens=13, drop_captions=0.0),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0),
        train=TrainConfig(steps=150, log_every=50, validate_every=150, validation_batches=2),
        checkpoint=CheckpointConfig(every=150),
        mesh=MeshConfig(data=1),
    )
    train(PartiLearner.from_corpus(config))
    first, *_, last = read(tmp_path)
    assert last["loss"] < 0.05 < first["loss"]
