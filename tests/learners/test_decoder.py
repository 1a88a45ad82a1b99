"""The decoder's loss against plain arithmetic."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3jax import partition
from cm3jax.config import (
    CM3Config,
    DecoderConfig,
    LossConfig,
    MeshConfig,
    OptimConfig,
    RetrievalConfig,
    TrainConfig,
)
from cm3jax.data.pipeline import Position
from cm3jax.learners.decoder import DecoderLearner, flops_per_token
from cm3jax.model.decoder import Decoder
from cm3jax.testing import decoder_variables
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from tests.data import corpora
from tests.tiny import VOCAB, experiment, learner


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
    """By one forward pass, with the whole table at once."""
    variables = {"params": params}
    hidden = model.apply(variables, batch.tokens, batch.positions, batch.segments)
    return model.apply(variables, hidden, method="logits")


@pytest.fixture(scope="module")
def setting():
    """A learner, random parameters and a batch with weights 0, 0.5 and 1."""
    ours = learner(experiment(""))
    params = decoder_variables(Decoder(ours.experiment.model, VOCAB.size))["params"]
    batch = next(ours.stream("train").batches(Position())).data
    weights = np.random.default_rng(0).choice([0.0, 0.5, 1.0], batch.weights.shape)
    batch.weights[:] = weights.astype(np.float32)
    return ours, params, jax.tree.map(jnp.asarray, batch)


def test_loss_is_the_weighted_mean_over_the_batch(setting):
    ours, params, batch = setting
    output = jax.jit(ours.loss)(params, {}, batch, jax.random.key(0), jnp.int32(0))
    logits = logits_of(ours.model, params, batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    weighted = np.asarray(losses * batch.weights)
    mean = weighted.sum() / np.asarray(batch.weights).sum()
    assert float(output.loss) == pytest.approx(mean, rel=1e-5)

    image = np.asarray((batch.targets >= VOCAB.first_image) & (batch.targets < VOCAB.first_text))
    total, weight = output.metrics["loss_image"]
    assert float(total) == pytest.approx(weighted[image].sum(), rel=1e-5)
    assert float(weight) == np.asarray(batch.weights)[image].sum()


def test_targets_without_weight_do_not_matter(setting):
    ours, params, batch = setting
    blank = jnp.where(batch.weights == 0, 0, batch.targets)
    loss = jax.jit(ours.loss)
    losses = [
        loss(params, {}, b, jax.random.key(0), jnp.int32(0)).loss
        for b in (batch, dataclasses.replace(batch, targets=blank))
    ]
    assert losses[0] == losses[1]


def test_a_batch_without_any_weight_has_loss_zero(setting):
    ours, params, batch = setting
    none = dataclasses.replace(batch, weights=jnp.zeros_like(batch.weights))
    assert jax.jit(ours.loss)(params, {}, none, jax.random.key(0), jnp.int32(0)).loss == 0.0


def test_every_parameter_has_logical_axes():
    boxed = jax.eval_shape(learner(experiment("")).init, jax.random.key(0))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert leaves
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves)


def test_flops_by_hand():
    config = DecoderConfig(layers=2, width=8, heads=2, head_width=4, ffn=16, context=10)
    # Per layer 4 * 8*8 of attention and 2 * 8*16 of feed-forward, and the head of 100 * 8.
    matrices = 6 * (2 * (256 + 256) + 800)
    attention = 12 * 2 * 8 * 10
    assert flops_per_token(config, 100) == matrices + attention
    # Queries and output keep 8*8, keys and values have half of that; the gate is a third 8*16.
    relative = dataclasses.replace(config, kv_heads=1, activation="swiglu", norm="rms", tied=False)
    matrices = 6 * (2 * (2 * 64 + 2 * 32 + 3 * 128) + 800)
    assert flops_per_token(relative, 100) == matrices + attention


def test_z_loss_adds_the_squared_log_of_the_denominator(setting):
    ours, params, batch = setting
    plain = jax.jit(ours.loss)(params, {}, batch, jax.random.key(0), jnp.int32(0))
    config = dataclasses.replace(ours.experiment, loss=LossConfig(z_loss=0.1))
    output = jax.jit(learner(config).loss)(params, {}, batch, jax.random.key(0), jnp.int32(0))
    logits = np.asarray(logits_of(ours.model, params, batch), np.float64)
    squares = np.log(np.exp(logits).sum(-1)) ** 2
    weights = np.asarray(batch.weights, np.float64)
    mean = (squares * weights).sum() / weights.sum()
    assert float(output.loss) == pytest.approx(float(plain.loss) + 0.1 * mean, rel=1e-5)
    assert output.metrics["loss_z"].compute() == pytest.approx(mean, rel=1e-5)
    assert output.metrics["loss"].compute() == pytest.approx(float(plain.loss), rel=1e-6)
    assert "loss_z" not in plain.metrics


def test_dropout_is_for_training_and_the_same_on_any_mesh(setting):
    ours, params, batch = setting
    model = dataclasses.replace(ours.experiment.model, dropout=0.3)
    config = dataclasses.replace(ours.experiment, model=model)
    dropping = learner(config)

    compiled = jax.jit(dropping.loss, static_argnames="training")

    def loss(batch, key, **mode):
        return float(compiled(params, {}, batch, key, jnp.int32(0), **mode).loss)

    key = jax.random.key(7)
    expected = float(jax.jit(ours.loss)(params, {}, batch, key, jnp.int32(0)).loss)
    assert loss(batch, key, training=False) == expected
    dropped = loss(batch, key)
    assert abs(dropped - expected) > 1e-3
    assert abs(loss(batch, jax.random.key(8)) - dropped) > 1e-3
    mesh = partition.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        cut = jax.device_put(batch, partition.batch_sharding(mesh))
        assert loss(cut, key) == pytest.approx(dropped, rel=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in [(1, 8, 1), (2, 4, 1)])],
)
def test_loss_and_gradients_are_the_same_on_any_mesh(setting, sizes):
    ours, params, batch = setting

    def loss(params, batch):
        return ours.loss(params, {}, batch, jax.random.key(0), jnp.int32(0)).loss

    mesh = partition.make_mesh(MeshConfig(*sizes))
    cuts = partition.shardings(mesh, jax.eval_shape(ours.init, jax.random.key(0)))["params"]
    expected = jax.value_and_grad(loss)(params, batch)
    with jax.set_mesh(mesh):
        cut = jax.device_put((params, batch), (cuts, partition.batch_sharding(mesh)))
        found = jax.jit(jax.value_and_grad(loss))(*cut)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_nothing_is_copied_whole_between_the_cuts_of_tables_and_batches():
    """XLA says so while it compiles."""
    program = (
        "from cm3jax import partition; from cm3jax.config import MeshConfig;"
        "from cm3jax.memory import compiled_bytes, planned; from tests.tiny import experiment;"
        "tiny = experiment('', mesh=MeshConfig(2, 4, 1));"
        "compiled_bytes(planned(tiny), partition.make_mesh(tiny.mesh))"
    )
    mine = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=os.environ | mine,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "full rematerialization" not in done.stderr


def test_reads_rows_and_vocabulary_of_a_corpus(tmp_path):
    bank = corpora.write_bank(tmp_path)
    for split in ("train", "validation"):
        corpora.write_corpus(tmp_path, bank, split=split)
    ours = DecoderLearner.from_corpus(corpora.experiment(tmp_path))
    assert ours.fingerprints == {
        "vocab": corpora.VOCAB.fingerprint,
        "text": "text",
        "image": "image",
    }
    batch = next(ours.stream("validation").batches(Position())).data
    assert batch.tokens.shape == (8, 64)
    assert ours.work.tokens == 8 * 64


@pytest.mark.slow
def test_memorises_a_corpus_down_to_what_nothing_tells(tmp_path):
    """Without masks, all is told by what came before but which record it is: log(4) nats each.

    Less than that share of the loss would be a token that sees itself or what follows.
    """
    bank = corpora.write_bank(tmp_path)
    rng = np.random.default_rng(0)
    texts = VOCAB.first_text + rng.permuted(np.tile(np.arange(32), (4, 2)), axis=1)[:, :50]
    images = VOCAB.first_image + rng.integers(0, 64, (4, 4))
    breaks = np.full((4, 1), VOCAB.break_)
    documents = np.concatenate([texts, breaks, images], axis=1).astype(np.int32)
    for split in ("train", "validation"):
        writer = corpora.CorpusWriter(f"{tmp_path}/corpus/{split}", "this")
        shard = corpora.shard(range(4), len(bank))
        own = [
            dataclasses.replace(document, ids=ids)
            for document, ids in zip(shard.documents, documents, strict=True)
        ]
        writer.write(0, dataclasses.replace(shard, documents=own))
        writer.finish(1, corpora.facts(bank))
    tiny = experiment("")
    config = dataclasses.replace(
        corpora.experiment(tmp_path, batch=4),
        workdir=f"{tmp_path}/run",
        model=dataclasses.replace(tiny.model, context=64),
        cm3=CM3Config(mean_masks=0.0),
        retrieval=RetrievalConfig(documents=0),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0),
        train=TrainConfig(steps=200, log_every=50, validate_every=0),
        mesh=MeshConfig(data=1),
    )
    train(DecoderLearner.from_corpus(config))
    least = np.log(4) / (documents.shape[1] + 1)  # `eos` is a target too
    assert 0.99 * least < read_metrics(config.workdir)[-1]["loss"] < 0.05
