"""Lives of a run that end badly: killed before the report, on a full disk, two at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.errors import UserError
from cm3jax.report.run_page import is_reported
from cm3jax.training.metrics import read_metrics
from launch import env, prepare, train
from tests.launch import runs
from tests.launch.runs import ROOT, arguments, finish, start


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return [*runs.options(tmp_path_factory.mktemp("corpus")), "--mesh.data", "1"]


def call(module, *words, within=(), **settings):
    command = [*within, sys.executable, "-m", f"launch.{module}", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **settings)


def require_sentence(done, *words):
    """Exit code 2 and one sentence with these words."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_report_gets_it(options, tmp_path):
    """SIGKILL between the last checkpoint and the report."""
    program = """
import os, pathlib, signal, sys, time
from cm3jax import train
from launch import train as command

def killed(run_dir, step, drawn):
    while not (pathlib.Path(run_dir) / "checkpoints" / str(step)).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

train.draw_report = killed
command.run(sys.argv[1:])
"""
    words = arguments(options, tmp_path / "run", 4)
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert load_run(tmp_path / "run").step == 4
    assert not (tmp_path / "run" / "report.html").exists()
    lines = read_metrics(tmp_path / "run")

    assert "finished already" in finish(start(options, tmp_path / "run", 4))
    assert is_reported(tmp_path / "run", 4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "4 of 4" in page
    assert read_metrics(tmp_path / "run") == lines
    written = os.stat(tmp_path / "run" / "report.html")
    finish(start(options, tmp_path / "run", 4))
    assert os.stat(tmp_path / "run" / "report.html") == written, "it is not drawn again"


@pytest.mark.slow
def test_a_full_disk_ends_the_run_at_the_save_that_fails(options, tmp_path):
    """In one sentence, steps before the next save; with room again it goes on exactly."""
    saves = ["--checkpoint.every", "60", "--train.validate-every", "0", "--train.log-every", "10"]
    words = arguments([*options, *saves], tmp_path / "run", 1000)
    # No file over 16 KiB: arrays are gathered in files of 16 to 70, as time has it.
    small_disk = ("bash", "-c", 'ulimit -f 16; exec "$0" "$@"')
    off = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # it writes files of its own
    done = call("train", *words, within=small_disk, env=off)
    require_sentence(done, "the checkpoint of step 60 cannot be written to", "make room there")
    assert 60 <= read_metrics(tmp_path / "run")[-1]["step"] < 120
    assert not list((tmp_path / "run" / "checkpoints").glob("60"))

    printed = finish(start([*options, *saves], tmp_path / "run", 62))
    assert "starting from scratch" in printed
    assert load_run(tmp_path / "run").step == 62


@pytest.mark.slow
def test_the_second_training_in_a_folder_is_refused(options, tmp_path):
    run = tmp_path / "run"
    (first,) = start(options, run, 1_000_000)
    with first:
        while len(read_metrics(run)) < 5:
            assert first.poll() is None
            time.sleep(0.01)
        second = call("train", *arguments(options, run, 1_000_000))
        require_sentence(second, f"{run} is in use: training quickstart (process {first.pid} on ")
        before = len(read_metrics(run))
        while len(read_metrics(run)) < before + 5:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == list(range(1, len(steps) + 1)), "nobody else wrote"
    finish(start(options, run, len(steps) + 1))  # the dead one blocks nobody


@pytest.mark.slow
def test_the_second_generation_into_a_folder_is_refused(tmp_path):
    testing.write_chain(tmp_path)
    words = ["text", "a red fox", "--run", tmp_path / "decoder", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "launch.generate", *map(str, words), "--samples", "2000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        log = tmp_path / "out" / "samples.jsonl"
        while not log.exists():
            assert first.poll() is None
            time.sleep(0.01)
        done = call("generate", *words)
        require_sentence(done, f"{tmp_path / 'out'} is in use: generating with", str(first.pid))
        first.kill()
    lines = log.read_bytes().count(b"\n")
    assert call("generate", *words).returncode == 0
    assert log.read_bytes().count(b"\n") in (lines, lines + 1)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("file", ("is a file", "give a folder as --workdir")),
        ("file/below", ("cannot be written", "file)")),
        ("/proc/nobody/run", ("cannot be written", "/proc/nobody")),
        ("s3://bucket/run", ("--workdir is 's3://bucket/run'", "buckets on gs://")),
        ("file:///run", ("--workdir is 'file:///run'", "without file:")),
        ("gs://bucket/run", ("need the package gcsfs",)),
    ],
)
def test_a_place_that_cannot_be_written_raises_user_error(options, tmp_path, where, words):
    (tmp_path / "file").write_text("mine")
    absolute = where.startswith("/") or ":" in where
    place = where if absolute else tmp_path / where
    with pytest.raises((UserError, ImportError)) as raised:
        train.run(arguments(options, place, 1))
    assert all(word in env.user_sentence(raised.value) for word in words)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("option", ["--data.corpus", "--data.bank", "--tokenizers.text"])
@pytest.mark.parametrize("path", ["s3://b/x", "file:///x", "hdfs://x"])
def test_paths_of_other_kinds_raise_user_error(option, path, tmp_path):
    with pytest.raises(UserError, match=f"{option} is '{path}', but paths are"):
        prepare.run(["quickstart", option, path, "--workdir", str(tmp_path / "run")])


@pytest.mark.slow
def test_a_folder_without_permission_raises_user_error(options, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    program = """
import os, sys
from launch import env, train
import cm3jax.learners.decoder
if os.geteuid() == 0:  # who may write everywhere
    os.seteuid(65534)
sys.argv[1:] = WORDS
env.main(train.run)
""".replace("WORDS", repr(arguments(options, tmp_path / "closed" / "run", 1)))
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    require_sentence(done, "cannot be written", "Permission denied")
    assert not any((tmp_path / "closed").iterdir())
