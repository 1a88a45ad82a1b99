"""Flags that the installed jaxlib accepts, and a cache of compiled programs that fills."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import env

ROOT = Path(__file__).resolve().parents[2]


def start(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    keep = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=keep | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_installed_jaxlib_accepts_every_flag():
    flags = [flag for each in env.FLAGS.values() for flag in each.get("XLA_FLAGS", ())]
    assert flags
    begin = "import jax; jax.devices()"
    assert start(begin, XLA_FLAGS=" ".join(flags)).returncode == 0
    unknown = start(begin, XLA_FLAGS="--xla_gpu_no_such_flag=true")
    assert unknown.returncode != 0  # or the line above would show nothing
    assert "Unknown flag" in unknown.stderr


def test_flags_and_cache_are_set_before_the_backend_starts(tmp_path):
    program = (
        "import os, jax; from launch import env; env.prepare();"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0);"
        "jax.jit(lambda x: x + 1)(1.0).block_until_ready();"
        "print(os.environ['XLA_FLAGS']); print(os.environ['LIBTPU_INIT_ARGS'])"
    )
    mine = "--xla_gpu_enable_latency_hiding_scheduler=false"
    answer = start(program, XDG_CACHE_HOME=str(tmp_path), XLA_FLAGS=mine)
    assert answer.returncode == 0, answer.stderr
    xla, tpu = answer.stdout.splitlines()
    assert xla.endswith(f" {mine}")  # the user's word is the last
    assert tpu.startswith("--xla_tpu_")
    (folder,) = (tmp_path / "cm3jax").iterdir()
    assert any(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such options")
def test_freed_memory_is_kept_when_asked():
    program = """
import resource, sys
from launch import env
def faults():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        len(sys.argv[0].encode() * 2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
env.keep_freed_memory()
print(faults())
"""
    freed, kept = map(int, start(program).stdout.split())
    assert freed > 30_000  # 128 MiB, or 32,768 pages of 4 KiB
    assert kept < 100


def test_the_users_cache_goes_first(tmp_path):
    program = (
        "import jax; from launch import env; env.prepare();"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    answer = start(program, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert answer.stdout.strip() == str(tmp_path)


SAYS = r"""
import sys
from cm3jax.errors import UserError
from launch.env import main
def command(argv):
    print("a \u2013 b \U0001f600")
    match argv[0]:
        case "user": raise UserError("no \x1b[2J\rname.")
        case "memory": raise MemoryError("Unable to allocate 7.28 TiB")
main(command)
"""


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("user", r"error: no \x1b[2J\rname."),
        (
            "memory",
            "error: there is not enough memory (Unable to allocate 7.28 TiB); make room, or give "
            "less at once.",
        ),
    ],
)
def test_any_terminal_shows_what_is_said_and_no_file_name_steers_it(fault, sentence):
    answer = start(SAYS, fault, PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert (answer.returncode, answer.stderr.splitlines()[-1]) == (2, sentence), answer.stderr
    assert answer.stdout == "a \\u2013 b \\U0001f600\n"


def test_an_argument_that_is_not_utf_8_is_refused_before_any_work():
    """Else a sample would be drawn, and then not be written: its line names the image."""
    program = "from launch.env import main; main(lambda argv: print(argv))"
    assert start(program, "caf\u00e9.png").stdout == "['caf\u00e9.png']\n"
    refused = start(program, "caption", os.fsdecode(b"caf\xe9.png"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        r"error: the argument 'caf\udce9.png' is not UTF-8; write it so, or rename the file."
        "\n"
    )


def test_ctrl_c_is_quiet_while_modules_are_imported():
    answer = start(
        "import launch, signal, os; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)"
    )
    assert (answer.returncode, answer.stderr) == (-signal.SIGINT, "")
    assert "ValueError: x" in start("import launch; raise ValueError('x')").stderr


INTERRUPTED = """
import sys
from cm3jax.errors import UserError
from launch.env import main

def command(argv):
    try:
        raise ImportError("initialization failed") from KeyboardInterrupt()  # as CPython does
    except ImportError:
        if argv:
            raise UserError("install it.") from None
        raise

main(command)
"""


def test_ctrl_c_is_quiet_while_a_module_in_c_is_imported_late():
    """Also where a missing package would be told."""
    for words in ((), ("told",)):
        answer = start(INTERRUPTED, *words)
        assert (answer.returncode, answer.stderr) == (130, "")


CIRCLE = """
from cm3jax.errors import UserError
from launch.env import main

def command(argv):
    try:
        try:
            raise ValueError("no answer")
        except ValueError as error:
            raise error from error  # as pymilvus does
    except ValueError:
        raise UserError("start it.") from None

main(command)
"""


UNRAISED = """
import gc, os, signal, sys, time
{imported}
def collected(phase, info):
    if gc.callbacks.pop():  # once
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
def command(argv):
    gc.callbacks.append(collected)
    gc.collect()
    time.sleep(9)
    print("went on")
{run}
"""


def test_ctrl_c_while_garbage_is_collected_is_not_lost():
    """Jax has a callback there, from which nothing can be raised."""
    imported = UNRAISED.format(imported="import launch", run="command([])")
    answer = start(imported)
    assert (answer.returncode, answer.stdout, answer.stderr) == (-signal.SIGINT, "", "")
    answer = start(UNRAISED.format(imported="from launch import env", run="env.main(command)"))
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "")


def test_an_error_that_a_library_raised_from_itself_is_told():
    answer = start(CIRCLE)
    assert (answer.returncode, answer.stderr) == (2, "error: start it.\n")
