"""Compiled programs on disk, so that the next process starts where this one has compiled.

What the user says, by jax's own settings or environment variables, goes first: a cache of the
user's own stays as it is, and `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.
"""

import os
from pathlib import Path

import jax

from cm3jax.io.files import digest
from cm3jax.io.paths import cache_home

_WORTH_SECONDS = 0.05
"""A program that compiled for longer is kept: jax's default, a second, leaves out most of the many
programs that a start waits for."""
_FOLDER = "jax_compilation_cache_dir"
_THRESHOLD = "jax_persistent_cache_min_compile_time_secs"


def use_program_cache() -> None:
    """Keep compiled programs in `cache_dir`, unless jax keeps them elsewhere already."""
    if getattr(jax.config, _FOLDER) is not None:
        return
    jax.config.update(_FOLDER, str(cache_dir()))
    if _THRESHOLD.upper() not in os.environ and getattr(jax.config, _THRESHOLD) == 1.0:
        jax.config.update(_THRESHOLD, _WORTH_SECONDS)


def cache_dir() -> Path:
    """Where compiled programs are kept when `JAX_COMPILATION_CACHE_DIR` does not say.

    A folder of the user's cache, one for each kind of processor: homes are shared between machines,
    and programs for CPUs are compiled for the very processor.
    """
    return cache_home() / f"xla-{digest(_processor())}"


def _processor() -> str:
    """What distinguishes processors to a compiler."""
    about = Path("/proc/cpuinfo")  # Linux has it; elsewhere homes are seldom shared
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
