"""What surrounds a command: compiler flags, the cache of compiled programs, exit codes.

A user's mistake ends a command with one sentence and code 2.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
import jax

from cm3jax.errors import UserError
from cm3jax.files import digest

FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    # XLA's own defaults suit CPUs.
    "cpu": {},
    # Every jaxlib parses flags for GPUs, and an unknown one aborts the process: a test starts one
    # with these. Hiding communication behind arithmetic is NVIDIA's own setting for its jax images;
    # add others here only with the gain that they brought.
    "gpu": {"XLA_FLAGS": ("--xla_gpu_enable_latency_hiding_scheduler=true",)},
    # Gathers of parameters that run beside arithmetic. Only libtpu knows these flags, so that no
    # machine without a TPU can check them.
    "tpu": {
        "LIBTPU_INIT_ARGS": (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
        )
    },
}
"""Environment variable and flags by accelerator. All are set on every machine: flags for hardware
that is not there do nothing. For runs on GPUs that resume bitwise, add
`XLA_FLAGS=--xla_gpu_deterministic_ops=true`, which costs speed."""


def main(command: Callable[[list[str]], None]) -> None:
    """Run `command` on the process's arguments; the last line of every launch module.

    A `UserError` ends the process with its sentence on standard error and code 2; Ctrl-C, and a
    reader such as `head` that closes the pipe, end it quietly.
    """
    absl.logging.set_verbosity(absl.logging.ERROR)  # what libraries recommend is not for users
    prepare()  # before anything starts a backend of jax
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails
        sys.exit(1)


def prepare() -> None:
    """Set the flags and the cache; what the user's environment says goes first."""
    for variables in FLAGS.values():
        for variable, flags in variables.items():
            # Of a flag that stands twice the last one counts: the user's.
            os.environ[variable] = " ".join([*flags, os.environ.get(variable, "")]).strip()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir()))


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is allotted next, for the life of the process.

    XLA allots the temporaries of every step anew, and on CPUs a step that has its pages mapped each
    time takes up to a fifth longer. To be called before anything starts a backend of jax, whose
    threads would have heaps of their own. Without glibc nothing happens; what the host of an
    accelerator gains or loses was not measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        # By malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD.
        for option, value in ((-8, 1), (-4, 0), (-1, -1)):
            mallopt(option, value)


def cache_dir() -> Path:
    """Where compiled programs are kept when `JAX_COMPILATION_CACHE_DIR` does not say.

    A folder of the user's cache, one for each kind of processor: homes are shared between machines,
    and programs for CPUs are compiled for the very processor.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "cm3jax" / f"xla-{digest(_processor())}"


def _processor() -> str:
    """What distinguishes processors to a compiler."""
    about = Path("/proc/cpuinfo")  # Linux has it; elsewhere homes are seldom shared
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
