"""What surrounds a command: compiler flags, the cache of compiled programs, exit codes.

A user's mistake ends a command with one sentence and code 2.
"""

import ctypes
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import absl.logging

from cm3jax.errors import UserError
from cm3jax.io.texts import brief
from cm3jax.training.program_cache import use_program_cache
from launch import unraisablehook

FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    # XLA's own defaults suit CPUs.
    "cpu": {},
    # Every jaxlib parses flags for GPUs, and an unknown one aborts the process: a test starts one
    # with these. Hiding communication behind arithmetic is NVIDIA's own setting for its jax images;
    # add others here only with the gain that they brought.
    "gpu": {"XLA_FLAGS": ("--xla_gpu_enable_latency_hiding_scheduler=true",)},
    # Let collectives run beside arithmetic. Only libtpu knows these flags; it obeys them also
    # when it compiles for TPUs that are not there (`launch.plan --target`). The last two cut a
    # product and the gather of its parameters, or the sum of its gradients, into parts that take
    # turns once it is known what each device has: before that, which is the default, XLA finds no
    # such parts where `mesh.data` or `mesh.tensor` is beside `mesh.fsdp`, and gradients wait for
    # whole sums. What the third and the fourth bring is open: they were added for wide `mesh.fsdp`,
    # where gathers wait, but steps compiled at reduced width have as many collectives beside
    # arithmetic without them.
    "tpu": {
        "LIBTPU_INIT_ARGS": (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "--xla_enable_async_all_gather=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_tpu_all_gather_collective_matmul_mode=post_spmd",
            "--xla_tpu_reduce_scatter_collective_matmul_mode=post_spmd",
        )
    },
}
"""Environment variable and flags by accelerator. All are set on every machine: flags for hardware
that is not there do nothing. For runs on GPUs that resume bitwise, add
`XLA_FLAGS=--xla_gpu_deterministic_ops=true`, which costs speed."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(command: Callable[[list[str]], None]) -> None:
    """Run `command` on the process's arguments; the last line of every launch module.

    A `UserError` ends the process with its sentence on standard error and code 2, and so do a full
    disk, a folder that cannot be written, too little memory, and a bucket without the package that
    reads it; Ctrl-C, and a reader such as `head` that closes the pipe, end it quietly.
    """
    # What libraries recommend is not for users, and what fails in their threads is raised too.
    absl.logging.set_verbosity(absl.logging.FATAL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caption may have letters that it has not
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("asyncio").setLevel(
        logging.CRITICAL
    )  # the other arrays of a failed checkpoint
    sys.unraisablehook = _unraisablehook
    prepare()  # before anything starts a backend of jax
    try:
        _require_unicode(sys.argv[1:])
        command(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails
        sys.exit(1)
    except Exception as error:
        if _is_interrupt(error):
            sys.exit(130)
        sentence = user_sentence(error)
        if sentence is None:
            raise
        print(f"error: {_printable(sentence)}", file=sys.stderr)
        sys.exit(2)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it came of Ctrl-C: Python makes an ImportError of it while a module in C is imported,
    and whoever catches that may make another error."""
    seen: set[int] = set()  # libraries raise errors from themselves
    while error is not None and id(error) not in seen:
        if isinstance(error.__cause__, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _require_unicode(argv: Sequence[str]) -> None:
    """Refuse bytes of another encoding, as in names of old files: what a command writes about its
    work names them, and is UTF-8."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the argument {brief(word)} is not UTF-8; write it so, or rename the file."
            ) from None


def _unraisablehook(unraisable: Any) -> None:
    """As the package's, but silent on what a failed checkpoint, which is raised, leaves behind:
    tensorstore's threads tell of the other arrays to a loop that orbax has closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        unraisablehook(unraisable)


def _printable(sentence: str) -> str:
    """A sentence as it can be shown: names of files in it may hold what steers a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda odd: repr(odd[0])[1:-1], sentence)


def user_sentence(error: BaseException) -> str | None:
    """What a user can do about an error, in one sentence; None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; {_remedy(error)}."
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"a file cannot be written ({error.strerror}); {_remedy(error)}."
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return f"there is not enough memory{said}; make room, or give less at once."
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return "paths on gs:// need the package gcsfs; install it, or give a local path."
    return None


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room there and start again; what was complete is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "correct its permissions, or give another path"
    return "check the path"


def prepare() -> None:
    """Set the flags and the cache; what the user's environment says goes first."""
    for variables in FLAGS.values():
        for variable, flags in variables.items():
            # If a flag occurs twice the last one counts: the user's.
            os.environ[variable] = " ".join([*flags, os.environ.get(variable, "")]).strip()
    use_program_cache()


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is allotted next, for the life of the process.

    XLA allots the temporaries of every step again, and on CPUs mapping their pages each time makes
    a step up to a fifth longer. To be called before anything starts a backend of jax, whose
    threads would have heaps of their own. Without glibc nothing happens; what the host of an
    accelerator gains or loses was not measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        # By malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD.
        for option, value in ((-8, 1), (-4, 0), (-1, -1)):
            mallopt(option, value)
