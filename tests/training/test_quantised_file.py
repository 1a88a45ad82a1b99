"""Runs whose files hold few bits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.errors import UserError
from cm3jax.io import safetensors_file
from cm3jax.io.files import read_json, write_json
from cm3jax.model.decoder import Decoder
from cm3jax.model.quantised import contracted_by, quantise
from cm3jax.training import quantised_file
from cm3jax.training.exported_run import PARAMS_FILE, LoadedRun, write_run

KINDS = ("int8", "int4", "fp8")


@pytest.fixture(scope="module")
def run():
    experiment = testing.experiment()
    model = Decoder(experiment.model, testing.vocab().size)
    return LoadedRun(experiment, testing.decoder_variables(model), 7, {})


def widened(variables, kind):
    """What a reader must get."""

    def one(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        return quantise(leaf, contracted_by(path), kind).widened(jnp.float32)

    return jax.tree.map_with_path(one, variables)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_few_bits_loads_as_what_they_stand_for(run, kind, tmp_path):
    write_run(run.kept_as(kind, ""), tmp_path)
    found = load_run(tmp_path)
    assert found.experiment.model == dataclasses.replace(run.experiment.model, weights=kind)
    assert found.step == 7
    jax.tree.map(np.testing.assert_array_equal, found.variables, widened(run.variables, kind))
    # Written once more, as an upload does, it is the same file.
    write_run(found, tmp_path / "again")
    again, once = ((tmp_path / name / PARAMS_FILE).read_bytes() for name in ("again", "."))
    assert again == once


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4), ("fp8", 8)])
def test_matrices_take_their_bits_and_scales_in_the_file(run, kind, bits, tmp_path):
    write_run(run.kept_as(kind, ""), tmp_path)
    found = safetensors_file.read_file(tmp_path / PARAMS_FILE)
    kernel = run.variables["params"]["layers"]["feed_forward"]["up"]["kernel"]
    values = found["params/layers/feed_forward/up/kernel"]
    assert values.type == "U8"
    assert math.prod(values.shape) == kernel.size * bits // 8
    scales = found["params/layers/feed_forward/up/kernel_scales"]
    layers, inputs, outputs = kernel.shape
    assert scales.shape == (layers, inputs // 32 if kind == "int4" else 1, outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_read_as_the_whole_has_it(kind, tmp_path):
    kernel = np.random.default_rng(0).normal(size=(2, 4, 32, 64)).astype(np.float32)
    path = tuple(map(jax.tree_util.DictKey, ("params", "layers", "out", "kernel")))
    outputs = quantised_file.outputs("out/kernel", path, kernel, kind)
    safetensors_file.write_file(tmp_path / "x.safetensors", outputs, {})
    stored = safetensors_file.read_file(tmp_path / "x.safetensors")
    tensor = quantised_file.widened(stored, kind, "x")["out/kernel"]
    whole = tensor.read(...)
    assert (tensor.type, tensor.shape) == ("F32", kernel.shape)
    assert np.abs(whole - kernel).max() < 0.4
    for index in (
        (slice(None), slice(2, 4), slice(None), slice(16, 48)),
        (slice(1, 2), slice(None), slice(8, 24), slice(None)),
    ):
        np.testing.assert_array_equal(tensor.read(index), whole[index])


def test_scales_without_their_matrix_are_damage(run, tmp_path):
    write_run(run.kept_as("int8", ""), tmp_path)
    config = read_json(tmp_path / "config.json", "config")
    for other in ("int4", ""):  # the first reads two numbers in each byte
        write_json(
            tmp_path / "config.json", config | {"model": config["model"] | {"weights": other}}
        )
        with pytest.raises(UserError, match="kernel_scales scales nothing that is there"):
            load_run(tmp_path)


def test_a_byte_is_not_cut(run):
    path = tuple(map(jax.tree_util.DictKey, ("params", "layers", "up", "kernel")))
    with pytest.raises(UserError, match="up has 3 outputs, and two numbers of int4 share a byte"):
        quantised_file.outputs("up", path, np.ones((4, 3), np.float32), "int4")
