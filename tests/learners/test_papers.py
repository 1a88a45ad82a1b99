"""The models that the paper compares itself with, made tiny, train on a real corpus."""

import dataclasses

import pytest

from cm3jax.config import MeshConfig, OptimConfig, TrainConfig
from cm3jax.presets import load_experiment
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from launch.train import make_learner
from tests.data import corpora


def shrunk(name, path, workdir, **train_):
    """The experiment with its own objective and learner, but tiny sizes and corpus."""
    experiment, tiny = load_experiment(name), corpora.experiment(path)
    model = dataclasses.replace(
        experiment.model,
        layers=2,
        width=64,
        heads=2,
        head_width=32,
        ffn=128,
        context=64,
        dtype="float32",
        init_std=0.02,
    )
    return dataclasses.replace(
        experiment,
        workdir=str(workdir),
        vocab=tiny.vocab,
        vqgan=tiny.vqgan,
        model=model,
        parti=dataclasses.replace(experiment.parti, encoder_layers=1, text_tokens=16),
        data=tiny.data,
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=20, weight_decay=0.0),
        train=TrainConfig(**train_),
        mesh=MeshConfig(data=1),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("papers")
    bank = corpora.write_bank(path)
    for split in ("train", "validation"):
        corpora.write_corpus(path, bank, records=16, shards=1, split=split)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dalle", "cm3", "ra_cm3", "parti", "chameleon_7b"])
def test_learns_in_200_steps(name, path, tmp_path):
    config = shrunk(name, path, tmp_path, steps=200, log_every=10, validate_every=100)
    train(make_learner(config))
    lines = read_metrics(tmp_path)
    assert lines[-1]["step"] == 200
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["loss_image"] < 0.5 * lines[0]["loss_image"]
