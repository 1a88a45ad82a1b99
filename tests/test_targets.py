"""Accelerators as data; what is compiled for them is tested in `tests/launch/test_targets.py`."""

import re

import pytest

from cm3jax.errors import UserError
from cm3jax.targets import ACCELERATORS, Target, of_kind


def test_devices_are_told_by_the_longest_name_that_fits():
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "TPU7x": "ironwood",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA B200": "b200",
    }
    assert {kind: of_kind(kind).name for kind in kinds} == kinds
    assert of_kind("cpu") is None
    assert [a.memory for a in ACCELERATORS] == sorted(a.memory for a in ACCELERATORS)


@pytest.mark.parametrize(
    ("text", "slices", "topology", "hosts"),
    [
        ("v5e-1", 1, "1x1", 1),
        ("v5e-8", 1, "2x4", 2),
        ("v6e-256", 1, "16x16", 64),
        ("v6e-128", 4, "8x16", 128),
        ("v5p-4", 1, "2x2x1", 1),
        ("v5p-256", 1, "4x8x8", 64),
        ("ironwood-8", 1, "2x2x1", 1),  # four chips
        ("ironwood-128", 2, "4x4x4", 32),
        ("h200-4", 1, "1x1x4", 1),
        ("h200-64", 1, "1x8x8", 8),
        ("a100-40gb-256", 1, "1x32x8", 32),
    ],
)
def test_targets_have_the_shapes_that_exist(text, slices, topology, hosts):
    target = Target.parse(text, slices)
    assert (target.topology, target.hosts) == (topology, hosts)
    assert target.name == (text if slices == 1 else f"{slices} x {text}")
    assert target.size == slices * int(text.rpartition("-")[2])


@pytest.mark.parametrize(
    ("text", "slices", "said"),
    [
        ("v9-8", 1, "--target v9-8 is none of v5e, v6e, a100-40gb, a100"),
        ("v6e", 1, "--target v6e is none of"),
        ("v6e-0", 1, "--target v6e-0 is none of"),
        ("v6e-12", 1, "there is no slice of 12 v6e devices; its sizes are 1, 4, 8, 16,"),
        ("v6e-512", 1, "there is no slice of 512 v6e devices; .* 128, 256"),
        ("ironwood-4", 1, "there is no slice of 4 ironwood devices"),
        ("v4-8", 1, "compiling for v4 is not offered"),
        ("h200-12", 1, "h200-12 fills no hosts of 8 GPUs"),
        ("h200-64", 2, "--slices is for TPUs; .* h200-64 being 8 hosts"),
        ("v6e-8", 0, "--slices 0 must be at least 1"),
    ],
)
def test_what_does_not_exist_is_said(text, slices, said):
    with pytest.raises(UserError, match=said):
        Target.parse(text, slices)


def test_without_the_compiler_its_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package libtpu, but no accelerator: "):
        Target.parse("v6e-8").build()
    with pytest.raises(UserError, match=re.escape("jax-cuda13-plugin, but no accelerator: pip ")):
        Target.parse("h200-8").build()
