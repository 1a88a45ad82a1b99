"""A cache of compiled programs that fills, is read again, and leaves the user's settings alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3jax.training.program_cache import cache_dir

ROOT = Path(__file__).resolve().parents[2]
SHOW = (
    "print(jax.config.jax_compilation_cache_dir,"
    " jax.config.jax_persistent_cache_min_compile_time_secs)"
)


def start(program, **variables):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERSIST"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=keep | {"JAX_PLATFORMS": "cpu", "HOME": "/nonexistent"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "HOME"])
def test_the_program_cache_is_in_the_users_cache(name, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    assert cache_dir().is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("before", "variables", "shown"),
    [
        ("", {}, "{ours} 0.05"),
        ("", {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "2"}, "{ours} 2.0"),
        ("", {"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine 1.0"),
        ("jax.config.update('jax_compilation_cache_dir', 'mine')", {}, "mine 1.0"),
        ("jax.config.update('jax_persistent_cache_min_compile_time_secs', 3.0)", {}, "{ours} 3.0"),
    ],
)
def test_what_the_user_says_goes_first(before, variables, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = (
        f"import jax; from cm3jax.training.program_cache import use_program_cache\n{before}\n"
        f"use_program_cache()\n{SHOW}"
    )
    assert start(program, **variables) == shown.format(ours=cache_dir())


@pytest.mark.slow
def test_a_notebook_compiles_once(tmp_path):
    """Of the programs that `cm3jax.load` and its generator compile, the second process finds all
    that took longer than the threshold, also where others were compiled before."""
    program = """
import collections, jax, pathlib, sys
jax.jit(lambda x: x + 1)(1.0)  # of the user's own, before the cache is there
import cm3jax
from cm3jax import testing
run = pathlib.Path(RUN)
if not run.exists():
    testing.write_chain(run)
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event]))
cm3jax.load(run / "decoder").generate("a red fox")
print(seen["/jax/compilation_cache/cache_hits"], seen["/jax/compilation_cache/cache_misses"])
""".replace("RUN", repr(str(tmp_path / "run")))
    settings = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    hits, misses = map(int, start(program, **settings).split())
    assert misses >= 3
    again, _ = map(int, start(program, **settings).split())
    assert again >= hits + 3
