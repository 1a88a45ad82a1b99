"""Meshes, rules, coverage, and parameters that are born sharded."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cm3jax import partition
from cm3jax.config import MeshConfig
from cm3jax.errors import UserError
from cm3jax.training.state import plan_layout
from tests.tiny import experiment, learner


def box(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def specs(mesh, tree):
    return jax.tree.map(lambda sharding: sharding.spec, partition.shardings(mesh, tree))


def test_one_size_takes_the_rest_of_the_devices():
    assert dict(partition.make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    shape = dict(partition.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=2)).shape)
    assert shape == {"data": 1, "fsdp": 4, "tensor": 2}
    assert partition.make_mesh(MeshConfig(data=2)).size == 2


@pytest.mark.parametrize("sizes", [(16, 1, 1), (-1, 3, 1), (-1, 16, 1)])
def test_refuses_sizes_that_do_not_fit(sizes):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        partition.make_mesh(MeshConfig(*sizes))


def test_rules_cut_parameters():
    mesh = partition.make_mesh(MeshConfig(2, 2, 2))
    tree = {
        "table": box((64, 32), "vocab", "embed"),
        "query": box((3, 32, 4, 8), "layers", "embed", "heads", "head"),
        "odd": box((7, 32), "vocab", "embed"),  # 7 cannot be halved: only the width is cut
        "square": box((32, 32), "embed", "embed"),  # a mesh axis cuts one dimension
        "plain": jax.ShapeDtypeStruct((5,), jnp.float32),
    }
    assert specs(mesh, tree) == {
        "table": PartitionSpec("tensor", "fsdp"),
        "query": PartitionSpec(None, "fsdp", "tensor", None),
        "odd": PartitionSpec(None, "fsdp"),
        "square": PartitionSpec("fsdp", None),
        "plain": PartitionSpec(),
    }
    assert partition.batch_shards(mesh) == 4


def test_an_axis_without_a_rule_is_refused_with_the_table():
    tree = {"good": box((4, 4), "embed", "mlp"), "bad": box((4,), "depth")}
    with pytest.raises(UserError, match=r"bad has an axis 'depth' without a rule(.|\n)*good +4 4"):
        partition.shardings(partition.make_mesh(MeshConfig()), tree)


def test_a_large_whole_parameter_is_refused_on_a_mesh_that_shards():
    tree = {"positions": box((1 << 10, (1 << 10) + 1), "positions", "embed")}
    partition.shardings(partition.make_mesh(MeshConfig()), tree)
    with pytest.raises(UserError, match="positions is large and would be whole"):
        partition.shardings(partition.make_mesh(MeshConfig(1, 8, 1)), tree)
    # Heads are all that `tensor` cuts, and positions have none.
    partition.shardings(partition.make_mesh(MeshConfig(1, 1, 8)), tree)
    tree = {"table": box((1 << 10, (1 << 10) + 1), "embed", "embed")}
    with pytest.raises(UserError, match="table is large and would be whole"):
        partition.shardings(partition.make_mesh(MeshConfig(1, 1, 8)), tree)


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 2, 2),
        *(pytest.param(s, marks=pytest.mark.slow) for s in [(8, 1, 1), (1, 8, 1), (1, 1, 8)]),
    ],
)
def test_parameters_are_born_sharded_with_the_same_bits_on_any_mesh(sizes):
    config = experiment("")

    def born(*sizes):
        mesh = partition.make_mesh(MeshConfig(*sizes))
        with jax.set_mesh(mesh):
            return plan_layout(learner(config), mesh).init(jax.random.key(3))

    whole, cut = born(1, 1, 1), born(*sizes)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    up = cut.params["layers"]["feed_forward"]["up"]["kernel"]
    assert up.addressable_shards[0].data.size * sizes[1] * sizes[2] == up.size
    moments = [m for m in jax.tree.leaves(cut.opt_state) if m.shape == up.shape]
    assert {m.sharding.spec for m in moments} == {up.sharding.spec}


def test_hardware_that_was_asked_for_must_be_there():
    assert partition.make_mesh(MeshConfig(platform="cpu")).size == 8
    with pytest.raises(UserError, match=r"mesh\.platform=gpu, but jax found only cpu"):
        partition.make_mesh(MeshConfig(platform="gpu"))


def test_a_platform_that_jax_cannot_start_raises_user_error():
    command = "from cm3jax import partition; partition.find_devices('')"
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, env=environment
    )
    assert "UserError: jax cannot start JAX_PLATFORMS=cuda;" in done.stderr
