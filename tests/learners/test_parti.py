"""The encoder-decoder: its pairs, its masks, its loss, and that it learns."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3jax.config import (
    CheckpointConfig,
    DecodeConfig,
    DecoderConfig,
    MeshConfig,
    OptimConfig,
    PartiConfig,
    TrainConfig,
)
from cm3jax.data.caption_image import CaptionImageStream, Pairs, split_documents
from cm3jax.data.pipeline import Position
from cm3jax.decode.grammar import Codes
from cm3jax.decode.loop import decode
from cm3jax.decode.params import as_read
from cm3jax.decode.request import Guide, Request
from cm3jax.errors import UserError
from cm3jax.learners.parti import PartiLearner, flops_per_pair
from cm3jax.model.cache import NONE, start_cache
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.testing import random_variables
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from cm3jax.training.optim import matrices
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


@partial(jax.jit, static_argnames=("model", "method"))
def apply(model, variables, *arguments, method="__call__"):
    """`model.apply`, compiled once per shape instead of run one operation at a time."""
    return model.apply(variables, *arguments, method=method)


def hidden(model, variables, texts, codes, length=None):
    """States of a caption and some codes; codes that are not there yet are seen by none."""
    there = jnp.arange(len(texts))[None] < (length or len(texts))
    codes, count = [*codes, *[0] * (VOCAB.image_tokens - len(codes))], len(codes)
    return np.asarray(apply(model, variables, jnp.asarray([texts]), there, jnp.asarray([codes])))[
        0, :count
    ]


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


def opened(config, split):
    return CaptionImageStream.open(config.data, config.vocab, config.parti, config.seed, split)


def test_captions_are_dropped_by_seed_epoch_and_record_only_in_training(path):
    config = experiment(path)
    bare = [VOCAB.eos] + [0] * 12

    def epochs(stream, count):
        batches = stream.batches(Position())
        rows = [next(batches).data for _ in range(2 * count)]  # 16 records in batches of 8
        return np.concatenate([pairs.texts for pairs in rows])

    texts = epochs(opened(config, "train"), 40)
    dropped = (texts == bare).all(1)
    assert dropped.mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(texts, epochs(opened(config, "train"), 40))
    assert not (epochs(opened(config, "validation"), 4) == bare).all(1).any()
    whole = next(opened(config, "train").batches(Position())).data
    corpus = opened(config, "train").corpus
    sizes = (config.data.batch, config.seed, config.parti.text_tokens)
    halves = [CaptionImageStream(corpus, *sizes, 0.25, i, 2).batches(Position()) for i in range(2)]
    shares = [next(half).data for half in halves]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_another_vocabulary_is_refused(path):
    config = experiment(path)
    other = dataclasses.replace(config.vocab, text_pieces=49)
    with pytest.raises(UserError, match="make them equal"):
        opened(dataclasses.replace(config, vocab=other), "train")


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


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (1, 3), (4,)])
def test_drawing_from_the_cache_equals_the_full_forward(model, variables, steps):
    """Captions of several lengths and of two samples each, which share the text's keys."""
    texts, lengths = np.asarray([[50, 60, 70, 80, 0], [90, 60, 0, 0, 0]]), jnp.asarray([4, 2])
    rows = np.random.default_rng(0).integers(32, 96, (4, VOCAB.image_tokens))
    read = as_read(variables, "float32")
    _, prefix = apply(model, read, jnp.asarray(texts), lengths, method="prefill")
    newest = jnp.full(2, NONE)
    cache, done, found = start_cache(prefix, lengths, newest, samples=2, capacity=6), 0, []
    for count in steps:
        part = jnp.asarray(rows[:, done : done + count])
        out, cache = apply(model, read, part, cache, method="extend")
        found.append(out)
        done += count
    found = np.concatenate(found, 1)
    for row, drawn in enumerate(found):
        text = texts[row // 2][: lengths[row // 2]]
        np.testing.assert_allclose(drawn, hidden(model, variables, text, rows[row]), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_the_engine_draws_what_a_full_forward_per_code_does(model, variables):
    """Greedy and guided, more captions than slots; the last id of a prompt starts the image."""
    eos, program = VOCAB.eos, (Codes((None,) * VOCAB.image_tokens),)
    blind = np.asarray([eos, eos], np.int32)
    texts = [[80, 81, eos], [90, eos], [82, 83, 84, 85, eos]]
    requests = [
        Request(np.asarray([*text, eos], np.int32), (Guide(blind, 3.0),), program, i)
        for i, text in enumerate(texts)
    ]
    config = DecodeConfig(temperature=0.0, batch=4)
    found = decode(model, as_read(variables, "float32"), VOCAB, requests, config, samples=2)
    codes = slice(VOCAB.first_image, VOCAB.first_text)

    def scores(text, drawn):
        states = hidden(model, variables, text, [eos, *drawn])[-1]
        return np.asarray(apply(model, variables, jnp.asarray(states), method="logits"))[codes]

    for text, samples in zip(texts, found, strict=True):
        drawn = []
        for _ in range(VOCAB.image_tokens):
            known, unknown = scores(text, drawn), scores([eos], drawn)
            drawn.append(VOCAB.first_image + int(np.argmax(unknown + 3.0 * (known - unknown))))
        assert [sample.ids.tolist() for sample in samples] == [drawn, drawn]


def test_a_caption_longer_than_the_encoder_reads_is_refused(model, variables):
    prefix = np.asarray([80] * 6 + [VOCAB.eos] * 2, np.int32)
    request = Request(prefix, (), (Codes((None,) * VOCAB.image_tokens),), 0)
    with pytest.raises(UserError, match=r"is 8 tokens long .* room for 0"):
        decode(model, as_read(variables, "float32"), VOCAB, [request], DecodeConfig())


def test_loss_is_that_of_each_code_after_the_earlier_ones(path):
    learner = PartiLearner.from_corpus(experiment(path))
    row = jnp.zeros((1, 1), jnp.int32)
    params = random_variables(learner.model.init, row, row == 0, row)["params"]
    pairs = next(learner.stream("validation").batches(Position())).data
    weights = np.asarray([[1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]], np.float32)
    pairs = Pairs(*map(jnp.asarray, (pairs.texts[:2], pairs.codes[:2], weights)))
    output = jax.jit(learner.loss)(params, {}, pairs, jax.random.key(0), jnp.int32(0))
    before = jnp.pad(pairs.codes[:, :-1], ((0, 0), (1, 0)), constant_values=VOCAB.eos)
    variables = {"params": params}
    states = apply(learner.model, variables, pairs.texts, pairs.texts != 0, before)
    logits = apply(learner.model, variables, states, method="logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, pairs.codes)
    expected = (np.asarray(losses) * weights).sum() / weights.sum()
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)
    assert output.metrics["loss_image"].compute() == pytest.approx(expected, rel=1e-5)


def test_every_parameter_has_logical_axes(model):
    row = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), row, row == 0, row)
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves)


def test_muon_takes_the_matrices_of_both_stacks(path):
    learner = PartiLearner.from_corpus(experiment(path, optim=OptimConfig(method="muon")))
    boxed = jax.eval_shape(learner.init, jax.random.key(0))["params"]
    sides = jax.tree.leaves_with_path(matrices(boxed), is_leaf=lambda x: isinstance(x, tuple))
    names = [jax.tree_util.keystr(where, simple=True, separator="/") for where, _ in sides]
    assert {name.split("/")[0] for name in names} == {"encoder", "layers"}
    kernels = [
        jax.tree_util.keystr(where, simple=True)
        for where, _ in jax.tree.leaves_with_path(nn.meta.unbox(boxed))
        if jax.tree_util.keystr(where[-1:], simple=True) == "kernel"
    ]
    assert len(names) == len(kernels) == 16  # 6 of a layer, and 4 of cross-attention


def test_flops_by_hand():
    config = DecoderConfig(layers=3, width=8, heads=2, head_width=4, ffn=16)
    model = EncoderDecoder(config, 2, vocab_size=100, text_tokens=5, image_tokens=7)
    layer = 4 * 64 + 2 * 128
    encoder = 2 * (6 * layer * 5 + 12 * 8 * 5 * 5)
    own = 6 * layer * 7 + 12 * 8 * 7 * 7
    cross = 6 * (2 * 64 * 7 + 2 * 64 * 5) + 12 * 8 * 7 * 5
    assert flops_per_pair(model) == encoder + 3 * (own + cross) + 6 * 800 * 7


@pytest.mark.slow
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
    first, *_, last = read_metrics(tmp_path)
    assert last["loss"] < 0.05 < first["loss"]
