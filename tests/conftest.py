"""Test environment: CPU, eight virtual devices, run-time shape checks; set before jax starts."""

import gc
import importlib.metadata
import os
import pathlib
import signal
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Virtual devices wait for each other on a thread pool of the size of the machine: with fewer
# threads than devices a collective never ends.
os.environ["NPROC"] = "32"
# Most of the suite's time is compilation: of programs that run once or twice, so that LLVM's passes
# cost more than they save, and often of the same programs in several processes.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # One part for LLVM: each of 32 would cost more than the few instructions in it.
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
# The emitters of fused loops take three quarters of a compilation. jax 0.12 has no others, and ends
# the process where it does not know a flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / "build/jax-cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest
from jaxtyping import install_import_hook

# Checking shapes and types at every call takes a third of the time: launch/test.sh leaves it out
# unless it is asked, as .ci/run asks for one of its runs.
if os.environ.get("CM3JAX_SHAPES") != "0":
    install_import_hook("cm3jax", "beartype.beartype")

# A shell starts what runs in the background with Ctrl-C ignored, and every child inherits that:
# tests that interrupt a process need it heeded.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tracing leaves many objects that live on; going through them again and again took 8 % of the time.
gc.set_threshold(100_000, 50, 100)

# A compiled program takes three entries and more in the process's table of memory maps, of which
# Linux allows 65,530: a whole suite in one process used them up, and jax crashed.
_MAPS = 20_000


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs go when they are many; what is needed again is compiled again."""
    began = time.perf_counter()
    yield
    if time.perf_counter() - began > 1 and _maps() > _MAPS:  # what is quick compiles little
        jax.clear_caches()
        gc.collect()


def _maps() -> int:
    table = pathlib.Path("/proc/self/maps")
    return table.read_bytes().count(b"\n") if table.exists() else 0  # Linux has it
