"""Accelerators as data, and the machines made of them that programs can be compiled for.

A *device* is what jax counts: a chip, or of Ironwood a core, of which a chip has two. Figures are
the makers' data sheets', dense bfloat16 for operations, and are what utilisation, plans, jobs and
benches are reckoned with. `Target` names devices that need not be here (`v6e-256`, `h200-64`):
XLA's compilers for TPUs and NVIDIA GPUs run on any x86-64 Linux machine.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any, Literal

from cm3jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cores:
    """What NVIDIA's compiler must know of a GPU besides the figures of `Accelerator`."""

    capability: str
    """CUDA compute capability, `9.0`."""
    count: int
    """Streaming multiprocessors."""
    lanes: int
    """Float32 units of one of them."""
    shared: int
    """Bytes of shared memory of one of them."""
    l2: int
    """Bytes of the cache that all share."""
    clock: float
    """GHz."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of device."""

    name: str
    """As in targets: `v6e`."""
    kind: str
    """How its `jax.Device.device_kind` is told: the longest `kind` of whole words in it counts."""
    platform: Literal["tpu", "gpu"]
    """jax's word for its maker's compiler and runtime."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes of memory that it reads or writes per second."""
    peak: float
    """Dense bfloat16 operations per second."""
    link: float
    """Bytes per second that it can send within its slice, or within its host of GPUs."""
    network: float
    """Bytes per second that it can send to other slices, or to other hosts of GPUs."""
    host: int
    """Devices of one host."""
    dimensions: int = 0
    """Axes of the torus that joins a slice's chips; 0 where compiling for it is not offered."""
    largest: int = 1 << 16
    """Devices of the largest slice."""
    cores: Cores | None = None
    """A GPU's."""

    @property
    def per_chip(self) -> int:
        """Devices of one chip."""
        return 2 if self.name == "ironwood" else 1


ACCELERATORS = (
    Accelerator("v5e", "TPU v5 lite", "tpu", 16e9, 819e9, 197e12, 200e9, 3.1e9, 4, 2, 256),
    Accelerator("v4", "TPU v4", "tpu", 32e9, 1228e9, 275e12, 300e9, 6.2e9, 4),
    Accelerator("v6e", "TPU v6 lite", "tpu", 32e9, 1640e9, 918e12, 400e9, 12.5e9, 4, 2, 256),
    Accelerator(
        *("a100-40gb", "A100-SXM4-40GB", "gpu", 40e9, 1555e9, 312e12, 300e9, 25e9, 8),
        cores=Cores("8.0", 108, 64, 167_936, 41_943_040, 1.41),
    ),
    Accelerator(
        *("a100", "A100", "gpu", 80e9, 2039e9, 312e12, 300e9, 25e9, 8),
        cores=Cores("8.0", 108, 64, 167_936, 41_943_040, 1.41),
    ),
    Accelerator(
        *("h100", "H100", "gpu", 80e9, 3352e9, 989e12, 450e9, 50e9, 8),
        cores=Cores("9.0", 132, 128, 233_472, 52_428_800, 1.98),
    ),
    Accelerator(
        *("h100-pcie", "H100 PCIe", "gpu", 80e9, 2039e9, 756e12, 64e9, 50e9, 8),
        cores=Cores("9.0", 114, 128, 233_472, 52_428_800, 1.755),
    ),
    Accelerator("v5p", "TPU v5", "tpu", 95e9, 2765e9, 459e12, 600e9, 6.2e9, 4, 3, 4096),
    # A chip has 192 GB, 7.37 TB/s and 2,307 TFLOP/s.
    Accelerator("ironwood", "TPU7x", "tpu", 96e9, 3690e9, 1153.5e12, 300e9, 6.2e9, 8, 3, 8192),
    Accelerator(
        *("h200", "H200", "gpu", 141e9, 4800e9, 989e12, 450e9, 50e9, 8),
        cores=Cores("9.0", 132, 128, 233_472, 62_914_560, 1.98),
    ),
    Accelerator(
        *("b200", "B200", "gpu", 180e9, 8000e9, 2250e12, 900e9, 50e9, 8),
        cores=Cores("10.0", 148, 128, 233_472, 132_120_576, 1.965),
    ),
)
"""All that is known, by memory, the smallest first."""


def of_kind(device_kind: str) -> Accelerator | None:
    """The accelerator that jax calls `device_kind`; None where it is not known (CPUs)."""
    # Whole words: GH200 is no H200. Some versions of libtpu say v5e, not v5 lite.
    found = [
        each
        for each in ACCELERATORS
        if re.search(rf"\b{each.kind}\b", device_kind) or device_kind == f"TPU {each.name}"
    ]
    return max(found, key=lambda each: len(each.kind), default=None)


GPU_SHARE = 0.95
"""Share of a GPU's memory that jobs let jax take, which by itself takes 0.75."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind: one slice or several of TPUs, hosts of up to 8 GPUs."""

    accelerator: Accelerator
    devices: int
    """Devices of one slice."""
    slices: int = 1

    def __post_init__(self):
        kind, count = self.accelerator, self.devices
        if self.slices < 1:
            raise UserError(f"--slices {self.slices} must be at least 1.")
        if kind.platform == "gpu":
            if self.slices > 1:
                raise UserError(
                    f"--slices is for TPUs; name all GPUs at once, {kind.name}-{count} being "
                    f"{max(1, count // kind.host)} hosts."
                )
            if count > kind.host and count % kind.host:
                raise UserError(
                    f"{kind.name}-{count} fills no hosts of {kind.host} GPUs; give a multiple."
                )
            return
        if not kind.dimensions:
            raise UserError(f"compiling for {kind.name} is not offered; choose {_names()}.")
        if count not in _slice_sizes(kind):
            raise UserError(
                f"there is no slice of {count} {kind.name} devices; its sizes are "
                f"{', '.join(map(str, _slice_sizes(kind)))}."
            )

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> "Target":
        """The target `NAME-DEVICES`, devices of one slice; `UserError` if there is none."""
        found = re.fullmatch(r"(.+)-(\d+)", text)
        known = {each.name: each for each in ACCELERATORS}
        if found is None or found[1] not in known or not int(found[2]):
            raise UserError(
                f"--target {text} is none of {_names()} with a number of devices, as in v6e-256; "
                "correct it."
            )
        return cls(known[found[1]], int(found[2]), slices)

    @property
    def name(self) -> str:
        """`v6e-256`, or `2 x v6e-256`."""
        one = f"{self.accelerator.name}-{self.devices}"
        return one if self.slices == 1 else f"{self.slices} x {one}"

    @property
    def size(self) -> int:
        """Devices of all slices."""
        return self.devices * self.slices

    @property
    def memory(self) -> float:
        """Bytes of one device that a program may take."""
        share = GPU_SHARE if self.accelerator.platform == "gpu" else 1.0
        return share * self.accelerator.memory

    @property
    def hosts(self) -> int:
        """Machines of all slices."""
        return self.slices * max(1, self.devices // self.accelerator.host)

    @property
    def rate(self) -> float:
        """Bytes per second that a device sends at most in a collective within its slice.

        Each GPU of a host has its own way to the network. What all of them need, each fetches a
        part of, and passes it on over the links.
        """
        kind = self.accelerator
        if kind.platform == "tpu" or self.hosts == 1:
            return kind.link
        return min(kind.link, kind.host * kind.network)

    @property
    def topology(self) -> str:
        """Chips along each axis of a slice (`4x8x8`, as clouds name it); of GPUs, slices, hosts and
        GPUs of a host."""
        if self.accelerator.platform == "gpu":
            return f"1x{self.hosts}x{self.devices // self.hosts}"
        return "x".join(map(str, self._chips))

    @property
    def _chips(self) -> tuple[int, ...]:
        return _torus(self.accelerator, self.devices // self.accelerator.per_chip)

    def build(self) -> list[Any]:
        """The `jax.Device`s, for which programs can be lowered and compiled, not run.

        Raises `UserError` where the compiler is not installed.
        """
        _require_compiler(self.accelerator)
        from jax.experimental.topologies import get_topology_desc

        if self.accelerator.platform == "gpu":
            # No driver must be asked; jax's own backend here stays the CPU.
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
            config = _gpu_config(self.accelerator)
            return list(
                get_topology_desc(
                    platform="cuda",
                    topology_name="",
                    target_config=config,
                    topology=self.topology,
                ).devices
            )
        # Several processes may compile at once where there is no chip to be shared; there is no
        # search for Google's own network; the last two only quieten libtpu.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        how: dict[str, Any] = {}
        if self.devices < self.accelerator.host:
            how["chips_per_host_bounds"] = (*self._chips, 1, 1)[:3]
        if self.slices > 1:
            how["num_slices"] = self.slices
        kind = "tpu7x" if self.accelerator.name == "ironwood" else self.accelerator.name
        name = f"{kind}:{self.topology}"
        return list(get_topology_desc(platform="tpu", topology_name=name, **how).devices)


def _names() -> str:
    return ", ".join(a.name for a in ACCELERATORS if a.dimensions or a.cores)


def _slice_sizes(kind: Accelerator) -> list[int]:
    """Devices of the slices that are offered: powers of two, of whole hosts or of one chip."""
    smallest = 1 if kind.dimensions == 2 else kind.host
    powers = [1 << power for power in range(17)]
    # Two chips of four are no slice.
    return [n for n in powers if smallest <= n <= kind.largest and (n != 2 or n == kind.host)]


def _torus(kind: Accelerator, chips: int) -> tuple[int, ...]:
    """The chips along each axis, as equal as powers of two allow, the longest last."""
    if kind.dimensions == 3 and chips == 4:  # one host
        return (2, 2, 1)
    power, axes = int(math.log2(chips)), kind.dimensions
    longer = power % axes
    return (2 ** (power // axes),) * (axes - longer) + (2 ** (power // axes + 1),) * longer


def _require_compiler(kind: Accelerator) -> None:
    package, extra = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda13_plugin", "cuda")}[kind.platform]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"compiling for {kind.name} needs the package {package.replace('_', '-')}, but no "
            f"accelerator: pip install '.[{extra}]'."
        )


def _gpu_config(kind: Accelerator) -> str:
    """XLA's `GpuTargetConfigProto` in text form."""
    cores = kind.cores
    assert cores is not None
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": cores.shared,
        "shared_memory_per_block_optin": cores.shared - 1024,
        "threads_per_core_limit": 2048,
        "core_count": cores.count,
        "fpus_per_core": cores.lanes,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(kind.bandwidth),
        "l2_cache_size": cores.l2,
        "clock_rate_ghz": cores.clock,
        "device_memory_size": int(kind.memory),
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    major, _, minor = cores.capability.partition(".")
    lines = [f"{name}: {value}" for name, value in info.items()]
    lines.append(f"cuda_compute_capability {{ major: {major} minor: {minor} }}")
    return "\n".join(
        [
            f"gpu_device_info {{ {' '.join(lines)} }}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            "runtime_version { major: 13 minor: 0 patch: 0 }",
            f'device_description_str: "NVIDIA {kind.kind}"',  # as Pallas looks it up
        ]
    )
