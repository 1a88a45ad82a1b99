"""Folders that conversions fill: whole or nothing, also after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from cm3jax.interop.folders import new_folder
from cm3jax.io.folders import hold

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from cm3jax.interop.folders import new_folder
from cm3jax.io.folders import hold

with new_folder(Path(sys.argv[1])) as folder:
    for part in (folder, folder / "clip"):  # as `write_run` does
        with hold(part, "exporting a run"):
            (part / "config.json").parent.mkdir(exist_ok=True)
            (part / "config.json").write_text("{}")
            if part.name == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_conversion_left_is_deleted_by_the_next(tmp_path):
    out = tmp_path / "run"
    left, theirs = tmp_path / ".run.123.part", tmp_path / ".run.77.part"
    for folder in (theirs, tmp_path / ".other.5.part"):
        folder.mkdir()
    halves = ("params.safetensors", "text/text.model", "vqgan/.params.safetensors.9.part")
    for name in (*halves, "clip/config.json"):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_text("half")
    (tmp_path / ".other.5.part" / "config.json").write_text("of another conversion")
    (theirs / "thesis.tex").write_text("mine")
    with new_folder(out) as folder:
        (folder / "config.json").write_text("{}")
    assert (out / "config.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other.5.part",
        ".run.77.part",
        "run",
    ]
    assert (theirs / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("at", [".run.part", "clip"])
def test_one_that_is_killed_while_it_writes_a_part_leaves_nothing_to_the_next(tmp_path, at):
    """Neither its folder nor the locks of its parts, beside the folder and in it."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(out), at]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9
    assert (tmp_path / ".run.part" / "config.json").exists()
    with new_folder(out) as folder, hold(folder, "exporting a run"):
        (folder / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError), new_folder(tmp_path / "run") as folder:
        (folder / "config.json").write_text(None)
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="exists; give another --out"), new_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("what", ["folder", "link", "link to nothing"])
def test_what_stands_where_a_conversion_is_written_stays_as_it_is(tmp_path, what):
    """Though some of its files are named as a conversion's are."""
    theirs, aside = tmp_path / "llama", tmp_path / ".run.part"
    if what != "link to nothing":
        theirs.mkdir()
        (theirs / "config.json").write_text("{}")
        (theirs / "thesis.tex").write_text("mine")
    if what == "folder":
        theirs = theirs.rename(aside)
    else:
        aside.symlink_to(theirs)
    with (
        pytest.raises(UserError, match=r"\.run\.part is in the way.*; move it away"),
        new_folder(tmp_path / "run"),
    ):
        pass
    if what != "link to nothing":
        assert sorted(os.listdir(theirs)) == ["config.json", "thesis.tex"]
    assert not (tmp_path / "run").exists()


def test_a_link_to_nothing_is_in_a_conversion_s_way(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="exists; give another --out"), new_folder(tmp_path / "run"):
        pass
