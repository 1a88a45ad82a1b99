"""Training in int8 and fp8: which products are of these types, and how the loss goes."""

import dataclasses
import importlib.util
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import TrainConfig
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.train import train
from cm3jax.training import precision
from cm3jax.training.metrics import read_metrics
from tests.tiny import experiment, learner

TYPES = {"int8": r"i8\[", "fp8": r"f8_e4m3fn\["}


def made(kind, **fields):
    plain = experiment("", **fields)
    model = dataclasses.replace(plain.model, quantised=kind)
    return learner(dataclasses.replace(plain, model=model))


def traced(tiny, training=True):
    """The loss's gradient as a program."""
    params = nn.unbox(jax.eval_shape(tiny.init, jax.random.key(0))["params"])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    batch = jax.device_put(next(tiny.streams["train"].batches(Position())).data)

    def loss(params):
        return tiny.loss(params, {}, batch, jax.random.key(0), jnp.int32(0), training).loss

    return str(jax.make_jaxpr(jax.grad(loss))(params))


@pytest.mark.parametrize("kind", TYPES)
def test_training_multiplies_in_this_type_and_nothing_else_does(kind):
    """In whatever order programs are made: none is another's that was traced before."""
    plain, quantised = made(""), made(kind)
    assert not re.search(TYPES[kind], traced(plain))
    program = traced(quantised)
    # The six matrices of a layer and what they are multiplied with.
    assert len(re.findall(":" + TYPES[kind], program)) >= 12
    assert not re.search(TYPES[kind], traced(quantised, training=False))
    assert not re.search(TYPES[kind], traced(plain))


@pytest.mark.slow  # two runs for each; that products are of the type is tested above
@pytest.mark.parametrize("kind", TYPES)
def test_the_loss_goes_as_without(kind, tmp_path):
    steps = TrainConfig(steps=30, log_every=30, validate_every=30, validation_batches=1)
    last = {}
    for name in ("", kind):
        config = experiment(tmp_path / (name or "plain"), train=steps)
        model = dataclasses.replace(config.model, quantised=name)
        train(learner(dataclasses.replace(config, model=model), distinct=8))
        last[name] = read_metrics(tmp_path / (name or "plain"))[-1]
    assert last[""]["loss"] < 4
    for metric in ("loss", "loss_valid"):
        np.testing.assert_allclose(last[kind][metric], last[""][metric], rtol=0.05)
        assert last[kind][metric] != last[""][metric]


def test_without_qwix_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.quantised=int8 needs the package qwix"):
        train(learner(dataclasses.replace(made("int8").experiment, workdir=str(tmp_path / "run"))))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"model\.quantised=int8 needs the package qwix"):
        precision.quantised(made("int8").model, "int8")  # as a plan that is compiled meets it


def test_other_learners_have_no_such_products():
    model = dataclasses.replace(experiment("").model, quantised="fp8")
    with pytest.raises(UserError, match=r"model\.quantised=fp8 is for a decoder, not for a parti"):
        experiment("", learner="parti", model=model)
