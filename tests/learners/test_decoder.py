"""The decoder's loss against plain arithmetic."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3jax.config import DecoderConfig
from cm3jax.data.pipeline import Position
from cm3jax.learners.decoder import DecoderLearner, flops_per_token
from cm3jax.model.decoder import Decoder
from cm3jax.testing import decoder_variables
from tests.data import corpora
from tests.tiny import VOCAB, experiment, learner


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
    output = ours.loss(params, {}, batch, jax.random.key(0), jnp.int32(0))
    variables = {"params": params}
    hidden = ours.model.apply(variables, batch.tokens, batch.positions, batch.segments)
    logits = ours.model.apply(variables, hidden, method="logits")
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
    losses = [
        ours.loss(params, {}, b, jax.random.key(0), jnp.int32(0)).loss
        for b in (batch, dataclasses.replace(batch, targets=blank))
    ]
    assert losses[0] == losses[1]


def test_a_batch_without_any_weight_has_loss_zero(setting):
    ours, params, batch = setting
    none = dataclasses.replace(batch, weights=jnp.zeros_like(batch.weights))
    assert ours.loss(params, {}, none, jax.random.key(0), jnp.int32(0)).loss == 0.0


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
