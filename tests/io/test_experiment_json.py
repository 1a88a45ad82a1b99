"""Configs survive a round trip through JSON, and nothing else gets in."""

import dataclasses
import json

import pytest

from cm3jax.config import DecodeConfig, Experiment, VQGANConfig
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import from_dict, read_experiment, save_experiment, to_dict

EXPERIMENT = Experiment(
    name="x",
    learner="clip",
    vqgan=VQGANConfig(multipliers=(1, 2)),
    decode=DecodeConfig(temperature_range=(0.5, 1.0)),
)


def test_round_trip(tmp_path):
    save_experiment(tmp_path / "config.json", EXPERIMENT)
    assert read_experiment(tmp_path / "config.json") == EXPERIMENT


def test_absent_fields_take_their_defaults():
    values = to_dict(EXPERIMENT)
    del values["train"], values["vqgan"]["blocks"]
    assert from_dict(values) == EXPERIMENT


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "stpes"), 3, "train.stpes"),
        (("bogus",), 3, "bogus"),
        (("train", "steps"), "many", "train.steps is 'many', which is not int"),
        (("train", "steps"), True, "train.steps"),
        (("optim", "peak_lr"), None, "optim.peak_lr"),
        (("learner",), "gan", "learner"),
        (("vqgan",), [1], "vqgan"),
        (("decode", "temperature_range"), [1.0], "decode.temperature_range"),
        (("train", "steps"), 0, "train.steps=0"),
    ],
)
def test_refuses_what_it_does_not_know(path, value, message):
    values = json.loads(json.dumps(to_dict(EXPERIMENT)))
    node = values
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    with pytest.raises(UserError, match=message):
        from_dict(values, "config.json")


def test_whole_numbers_are_floats_where_floats_are_meant():
    values = to_dict(EXPERIMENT)
    values["optim"]["peak_lr"] = 1
    assert dataclasses.asdict(from_dict(values))["optim"]["peak_lr"] == 1.0
