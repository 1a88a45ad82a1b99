"""Image tokenizer: the loss, the learning, the data, and loading what was trained."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cm3jax import files
from cm3jax.config import DataConfig, OptimConfig, TrainConfig
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.learners import vqgan
from cm3jax.learners.vqgan import VQGANLearner, code_usage
from cm3jax.testing import experiment
from cm3jax.tokenizers.image import to_pixels
from cm3jax.train import train

PATTERNS, SIZE = 12, 16
"""Distinct 8x8 patches; a picture has four of them."""


def patches():
    return np.random.default_rng(0).integers(0, 256, (PATTERNS, 1, 1, 3), np.uint8) * np.ones(
        (1, 8, 8, 1), np.uint8
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 pictures of four plain patches each."""
    path = tmp_path_factory.mktemp("pictures")
    choice = np.random.default_rng(1).integers(0, PATTERNS, (100, 2, 2))
    lines = []
    for number, cells in enumerate(choice):
        image = patches()[cells].transpose(0, 2, 1, 3, 4).reshape(SIZE, SIZE, 3)
        PIL.Image.fromarray(image).save(path / f"{number}.png")
        lines.append(f'{{"file": "{number}.png", "caption": "picture {number}"}}\n')
    files.write_atomic(path / "captions.jsonl", "".join(lines))
    return path


@pytest.fixture
def config(folder, tmp_path):
    tiny = experiment()
    return dataclasses.replace(
        tiny,
        learner="vqgan",
        vqgan=dataclasses.replace(tiny.vqgan, channels=32, commitment=5.0, ema_decay=0.9),
        workdir=str(tmp_path / "run"),
        data=DataConfig(source=str(folder), image_size=SIZE, batch=16),
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=10, weight_decay=0.0),
        train=TrainConfig(steps=200, log_every=100, validate_every=0),
    )


def test_training_makes_a_tokenizer_that_sees_every_patch(config):
    train(VQGANLearner(config))
    tokenizer = vqgan.load(config.run_dir)
    assert tokenizer.fingerprint == vqgan.load(config.run_dir).fingerprint
    pictures = np.tile(patches(), (1, 2, 2, 1))
    codes = tokenizer.encode(pictures)
    assert (codes == codes[:, :1]).all()
    assert len(np.unique(codes[:, 0])) == PATTERNS
    error = np.abs(tokenizer.decode(codes).astype(int) - pictures)
    assert error.mean() < 16


def test_loss_and_metrics(config):
    learner = VQGANLearner(config)
    variables = nn.unbox(jax.jit(learner.init)(jax.random.key(0)))
    batch = next(learner.stream("train").batches(Position())).data
    params, extra = variables["params"], {"codebook": variables["codebook"]}
    output = jax.jit(learner.loss)(params, extra, batch, jax.random.key(1), 0)
    pixels = to_pixels(jnp.asarray(batch["images"]))
    seen = jax.jit(learner.model.apply)(variables, pixels)
    mse = np.square(np.asarray(seen.reconstruction - pixels)).mean()
    expected = mse + config.vqgan.commitment * seen.commitment
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    assert {name: mean.compute() for name, mean in output.metrics.items()}.keys() == {
        "loss",
        "mse",
        "commitment",
        "code_usage",
        "code_perplexity",
    }
    assert jax.tree.structure(output.extra) == jax.tree.structure(extra)
    assert not np.array_equal(
        output.extra["codebook"]["quantiser"]["entries"], extra["codebook"]["quantiser"]["entries"]
    )


def test_code_usage():
    usage = code_usage(jnp.array([[0, 0, 1, 1], [2, 2, 3, 3]]), 16)
    np.testing.assert_allclose(usage["code_usage"], 4 / 16)
    np.testing.assert_allclose(usage["code_perplexity"], 4, rtol=1e-5)


def test_work_counts_every_matrix_product(config):
    learner = VQGANLearner(config)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim == 2)
    batch, cells = config.data.batch, config.vqgan.grid**2
    assert learner.work.tokens == batch * cells
    assert 6 * weights * batch * cells < learner.work.flops < 12 * weights * batch * cells


def test_splits_do_not_share_pictures(config):
    learner = VQGANLearner(config)
    train_pictures = learner.stream("train").arrays["images"]
    held_back = learner.stream("validation").arrays["images"]
    assert (len(train_pictures), len(held_back)) == (98, 2)
    assert train_pictures.dtype == np.uint8


def test_sizes_must_agree(config):
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=32))
    with pytest.raises(UserError, match=r"data\.image_size=32 and vqgan\.image_size=16"):
        VQGANLearner(wrong)


def test_load_refuses_what_is_no_tokenizer(config, tmp_path):
    with pytest.raises(UserError, match="holds no trained run"):
        vqgan.load(tmp_path / "nothing")
