"""Accelerators as data, and meshes of devices that are not here."""

import importlib.util
import re

import pytest

from cm3jax import partition
from cm3jax.config import MeshConfig
from cm3jax.errors import UserError
from cm3jax.targets import ACCELERATORS, Target, _gpu_config, of_kind


def test_devices_are_told_by_the_longest_name_that_fits():
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "TPU v5e": "v5e",
        "TPU v5p": "v5p",
        "TPU v6e": "v6e",
        "TPU7x": "ironwood",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA B200": "b200",
    }
    assert {kind: of_kind(kind).name for kind in kinds} == kinds
    assert [of_kind(kind) for kind in ("cpu", "NVIDIA GH200 480GB", "NVIDIA GB200")] == [None] * 3
    assert [a.memory for a in ACCELERATORS] == sorted(a.memory for a in ACCELERATORS)


def test_gpus_of_targets_are_called_as_they_call_themselves():
    """By these names jax 0.12 finds what Triton compiles for."""
    for each in ACCELERATORS:
        if each.platform == "gpu":
            (name,) = re.findall('device_description_str: "(.+)"', _gpu_config(each))
            assert re.match(r"NVIDIA [ABH]\d+\b", name)
            assert of_kind(name) is each


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


def test_gpus_of_a_host_share_its_ways_to_the_network():
    rates = {"h200-8": 450e9, "h200-64": 400e9, "a100-64": 200e9, "h100-pcie-64": 64e9}
    assert {name: Target.parse(name).rate for name in rates} == rates
    assert Target.parse("v6e-256", 2).rate == 400e9


def test_without_the_compiler_its_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package libtpu, but no accelerator: "):
        Target.parse("v6e-8").build()
    with pytest.raises(UserError, match=re.escape("jax-cuda13-plugin, but no accelerator: pip ")):
        Target.parse("h200-8").build()


def there(package: str):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"needs {package}, of the extra tpu or cuda",
    )


def powers(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length()) if 1 << power <= largest]


def meshes(target: Target) -> dict[tuple[int, int, int], partition.Mesh]:
    """Every mesh of powers of two that leaves parameters whole across slices."""
    devices = target.build()
    assert len(devices) == target.size
    assert {of_kind(device.device_kind) for device in devices} == {target.accelerator}
    assert len({device.process_index for device in devices}) == target.hosts
    found = {}
    for fsdp in powers(target.devices):
        for tensor in powers(target.devices // fsdp):
            sizes = (target.size // fsdp // tensor, fsdp, tensor)
            found[sizes] = partition.make_mesh(MeshConfig(*sizes), devices)
            assert tuple(found[sizes].shape.values()) == sizes
            assert len(set(found[sizes].devices.flat)) == target.size
    return found


@there("libtpu")
@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v6e-16", "v6e-128", "v5p-128", "ironwood-64"])
def test_every_mesh_of_a_slice_exists_and_slices_are_copies(name, slices):
    target = Target.parse(name, slices)
    for (data, _, _), mesh in meshes(target).items():
        for index, copy in enumerate(mesh.devices):
            found = {getattr(device, "slice_index", 0) for device in copy.flat}
            assert found == {index // (data // slices)}


@there("libtpu")
def test_parameters_are_not_cut_across_slices():
    devices = Target.parse("v6e-16", 2).build()
    with pytest.raises(UserError, match=r"between 2 slices, .* --mesh\.data 2 --mesh\.fsdp 4\.$"):
        partition.make_mesh(MeshConfig(1, 8, 4), devices)
    with pytest.raises(UserError, match="mesh data=1 fsdp=16 tensor=1 does not fit 32 devices"):
        partition.make_mesh(MeshConfig(1, 16, 1), devices)


@there("jax_cuda13_plugin")
@pytest.mark.parametrize("name", ["h200-1", "h200-4", "h200-8", "b200-16", "a100-256"])
def test_tensor_stays_within_a_host_of_gpus(name):
    for (_, _, tensor), mesh in meshes(Target.parse(name)).items():
        if tensor <= 8:
            for group in mesh.devices.reshape(-1, tensor):
                assert len({device.process_index for device in group}) == 1
