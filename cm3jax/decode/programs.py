"""Compiled programs of this process: how many decoding has, and when all are forgotten.

XLA maps each part of a program for CPUs into memory by itself: a chunk of passes takes some 400
mappings, of the 65,530 that Linux allows a process. The compiler that asks for one more ends the
process.
"""

import contextlib
import gc

import jax
from etils import epath

from cm3jax.decode import prefix_cache, steps

MOST = 512
"""Programs that are kept. A server's kind of requests needs 8 at most for prompts, a few to keep
what was read of them, and 64 for chunks, by rooms, parts of its slots, lengths, and whether all are
greedy: five times as many where `auto` tries windows."""
_MAPPINGS, _LIMIT = epath.Path("/proc/self/maps"), epath.Path("/proc/sys/vm/max_map_count")


def kept_programs() -> int:
    """How many programs this process has compiled for decoding, of those it has not forgotten."""
    return steps.compiled_programs() + prefix_cache.programs()


def forget_if_many(most: int = MOST, share: float = 0.5) -> bool:
    """Forget all programs of the process where there are more than `most`, or where it has used
    this share of the mappings that its system allows; whether it did. They are compiled again when
    they are needed.
    """
    if kept_programs() <= most and mappings() <= share * _most_mappings():
        return False
    jax.clear_caches()
    gc.collect()  # what was traced holds some in cycles
    return True


def mappings() -> int:
    """Mapped regions of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return _MAPPINGS.read_bytes().count(b"\n")
    return 0


def _most_mappings() -> float:
    with contextlib.suppress(OSError):
        return float(_LIMIT.read_text())
    return float("inf")
