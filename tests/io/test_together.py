import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from cm3jax.io.files import write_atomic
from cm3jax.io.folders import Held, hold
from cm3jax.io.together import read_together, replace_together, settle_together

ROOT = Path(__file__).parents[2]
NAMES = ("config", "text", "weights")
KILLED = """
import os, sys
from etils import epath
from cm3jax.io.files import write_atomic
from cm3jax.io.folders import hold
from cm3jax.io.together import replace_together

at, path = int(sys.argv[2]), type(epath.Path("/"))

def counted(original):
    def change(*args, **kwargs):
        global at
        at -= 1
        if at < 0:
            os._exit(9)
        return original(*args, **kwargs)
    return change

for name in ("replace", "unlink"):
    setattr(path, name, counted(getattr(path, name)))
def weights(path):
    write_atomic(path, "new")
    if len(sys.argv) > 3:
        raise KeyboardInterrupt
files = {"config": lambda path: write_atomic(path, "new"), "weights": weights}
with hold(sys.argv[1], "replacing"):
    replace_together(sys.argv[1], ("config", "text", "weights"), files)
"""


def contents(folder):
    return {name: (folder / name).read_text() for name in NAMES}


def made(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text("old")
    (folder / "thesis").write_text("mine")
    return folder


@pytest.mark.parametrize("at", range(9))
def test_a_replacement_killed_anywhere_leaves_all_files_of_one_version(tmp_path, at):
    folder = made(tmp_path)
    command = [sys.executable, "-c", KILLED, str(folder), str(at)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert (done.returncode == 9) == (at < 8), "every change to the disk is tried"
    found = read_together(folder, NAMES, lambda: contents(folder))
    version = "old" if at < 5 else "new"
    assert found == {"config": version, "text": "old", "weights": version}
    # What a kill left is never mixed with what is written next.
    with hold(folder, "again"):
        replace_together(folder, NAMES, {"weights": lambda path: write_atomic(path, "third")})
    assert contents(folder) == {"config": version, "text": "old", "weights": "third"}
    assert (folder / "thesis").read_text() == "mine"
    assert not [name for name in os.listdir(folder) if name.endswith(".new")]


@pytest.mark.parametrize("at", [5, 6, 7])
def test_one_that_is_stopped_when_all_is_complete_and_then_killed_is_no_mixture(tmp_path, at):
    folder = made(tmp_path)
    command = [sys.executable, "-c", KILLED, str(folder), str(at), "stopped"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 9
    found = read_together(folder, NAMES, lambda: contents(folder))
    assert found["config"] == found["weights"] == ("new" if at == 5 else "old")


def test_a_writer_that_fails_replaces_nothing(tmp_path):
    folder = made(tmp_path)

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    for files in ({"config": lambda path: write_atomic(path, "new"), "weights": full},):
        with pytest.raises(OSError, match="No space left"):
            replace_together(folder, NAMES, files)
    assert set(contents(folder).values()) == {"old"}
    assert sorted(os.listdir(folder)) == sorted([*NAMES, "thesis"])


def test_a_reader_never_sees_two_versions(tmp_path):
    folder, stop, seen = made(tmp_path), threading.Event(), set()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            files = {
                name: lambda path, text=str(number): write_atomic(path, text) for name in NAMES
            }
            with contextlib.suppress(Held), hold(folder, "replacing"):  # the reader finishes one
                replace_together(folder, NAMES, files)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until = time.monotonic() + 20
        while len(seen) < 20 and time.monotonic() < until:
            try:
                found = read_together(folder, NAMES, lambda: contents(folder))
            except UserError as error:
                assert "again and again" in str(error)  # noqa: PT017
                continue
            assert len(set(found.values())) == 1
            seen |= set(found.values())
    finally:
        stop.set()
        writer.join()
    assert len(seen) == 20


def test_an_interrupted_replacement_that_cannot_be_finished_is_said(tmp_path):
    folder = made(tmp_path)
    (folder / ".weights.new").write_text("new")
    with hold(folder, "something long"):
        refused = []

        def read():
            try:
                settle_together(folder, NAMES)
            except UserError as error:
                refused.append(str(error))

        from cm3jax.io import together

        before, together._PATIENCE = together._PATIENCE, 0.05
        try:
            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
        finally:
            together._PATIENCE = before
    assert "something long" in refused[0]
    settle_together(folder, NAMES)
    assert (folder / "weights").read_text() == "new"
