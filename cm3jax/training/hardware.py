"""What accelerators can do, to say how much of it a run uses."""

import functools
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from cm3jax.targets import ACCELERATORS, of_kind

A100_FLOPS = next(each.peak for each in ACCELERATORS if each.name == "a100")
"""Dense bfloat16 operations per second of an A100, the unit in which the paper counts."""


def peak_flops(device_kind: str) -> float | None:
    """Operations per second of one device at most, in bfloat16; None where it is not known (CPUs).

    A figure for float32 on the same device would be lower: utilisation is against bfloat16 always.
    """
    known = of_kind(device_kind)
    return known.peak if known else None


def a100_hours(flops: float) -> float:
    """Hours that an A100 would need at its full rate.

    The paper's hours are those of real runs, at less than the full rate; divide by a utilisation
    to compare.
    """
    return flops / A100_FLOPS / 3600


@functools.cache
def copy_rate(repeats: int = 5) -> float:
    """Bytes per second that one device reads and writes in changing a large array, at its best.

    Measured once per process: 256 MiB on CPUs, 1 GiB elsewhere.
    """
    size = 2**26 if jax.default_backend() == "cpu" else 2**28
    # An addition, since a bare copy might be left out; in place, since a CPU's new pages are mapped
    # one by one, which takes five times as long.
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = copy(jnp.zeros(size, jnp.float32)).block_until_ready()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        array = copy(array).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * array.nbytes / min(seconds)


def in_words() -> str:
    """The devices that jax computes on, e.g. `2 cores of Intel(R) Xeon(R) Processor`."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} × {devices[0].device_kind}"
    about = Path("/proc/cpuinfo")  # Linux has it
    lines = about.read_text().splitlines() if about.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {next(models, platform.machine())}"
