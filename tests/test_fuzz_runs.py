"""Files and options of real runs, changed at random: a command does its work, or refuses in a
sentence. It ends, it loses nothing, and it touches nothing that is not its own."""

import contextlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
from pathlib import Path

import jax
import pytest

from cm3jax import testing
from cm3jax.config import CheckpointConfig, Experiment, TrainConfig
from cm3jax.presets import load_experiment
from launch import generate, index, prepare, train
from launch.cli import _option_types
from launch.env import user_sentence
from launch.jobs import overrides
from tests.data import preparation
from tests.interop.test_fuzz import BYTES, changed

pytestmark = pytest.mark.slow

LONGEST = 30
"""Seconds that a command may take."""
RECORDS = 60
KEY = "5.png"
WORDS = [
    "",
    "-1",
    "0",
    "1",
    "3",
    "7",
    "nan",
    "inf",
    "none",
    "x",
    "1e-9",
    "99999999999999",
    "True",
    "😀",
    "../x",
]
COMMANDS = {
    "prepare": lambda options: prepare.run(["quickstart", *options]),
    "verify": lambda options: index.run(["verify", "quickstart", *options]),
    "audit": lambda options: index.run(["audit", "quickstart", *options]),
    "query": lambda options: index.run(["query", "quickstart", "a red fox", *options]),
    "remove": lambda options: index.run(["remove", "quickstart", KEY, *options]),
    "merge": lambda options: index.run(["merge", "quickstart", "data/other", *options]),
    "train": lambda options: train.run(["quickstart", *options]),
    "generate": lambda options: generate.command(
        ["text", "a red fox", "--run", "chain/decoder", "--out", "out", "--retrieve", "1"]
    ),
}
TOUCHES = {
    "prepare": ("data",),
    "remove": ("data",),
    "merge": ("data",),
    "train": ("run",),
    "generate": ("out",),
}
"""The folders that a command may write to; it may finish or sweep what lies beside a bank."""


class World:
    """A folder with all that the commands read and write, and a copy to begin each trial with."""

    def __init__(self, home):
        self.home, self.pristine = home / "world", home / "pristine"
        self.home.mkdir()
        self.options = self._options()
        with self.inside():
            self._make()
        self._put_canaries()
        shutil.copytree(self.home, self.pristine)

    def _options(self):
        made = preparation.experiment(Path("."), Path("data"), 16)
        made = preparation.dataclasses.replace(
            made,
            name="quickstart",
            workdir="run",
            train=TrainConfig(steps=2, log_every=1, validate_every=0),
            checkpoint=CheckpointConfig(every=2),
            optim=testing.dataclasses.replace(made.optim, method="adamw"),
            mesh=testing.dataclasses.replace(made.mesh, data=1),
            data=testing.dataclasses.replace(made.data, batch=4),
        )
        return overrides(made, load_experiment("quickstart"))

    def _make(self):
        preparation.write(Path("."), RECORDS)
        shutil.copytree("chain/bank", "data/other")
        for command in ("prepare", "train", "generate"):
            with contextlib.redirect_stdout(io.StringIO()):
                COMMANDS[command](self.options)

    def _put_canaries(self):
        folders = [p for p in self.home.rglob("*") if p.is_dir() and "ocdbt" not in str(p)]
        self.canaries = {}
        for folder in (self.home, *folders):
            if "checkpoints/" in str(folder):  # a file more is damage there
                continue
            for name in ("thesis.tex", ".notes.part", "mine.jsonl"):
                (folder / name).write_text(f"{name} in {folder}")
                self.canaries[folder / name] = f"{name} in {folder}"

    @contextlib.contextmanager
    def inside(self):
        before = os.getcwd()
        os.chdir(self.home)
        try:
            yield
        finally:
            os.chdir(before)

    def restore(self):
        shutil.rmtree(self.home)
        shutil.copytree(self.pristine, self.home)

    def files(self):
        """The content of every file, and of nothing that only exists while a command runs."""
        return {
            p.relative_to(self.home): p.read_bytes() for p in self.home.rglob("*") if p.is_file()
        }

    def run(self, command, options):
        """The sentence with which the command refused; None if it did its work."""
        with self.inside(), limit(LONGEST), contextlib.redirect_stdout(io.StringIO()) as printed:
            with contextlib.redirect_stderr(printed):
                try:
                    COMMANDS[command](options)
                except Exception as error:
                    sentence = user_sentence(error)
                    if sentence is None:
                        raise
                    return sentence
        return None


@contextlib.contextmanager
def limit(seconds):
    """`TimeoutError` where the body takes longer."""

    def stop(*_):
        raise RuntimeError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("fuzz"))


def check(world, command, sentence, before, mutated, named=()):
    """Nothing lost, nothing written elsewhere; a refusal is a sentence and changes no data.

    `named` are folders that the command was told to write to.
    """
    after = world.files()
    for path, text in world.canaries.items():
        assert path.read_text() == text, f"{path} was touched"
    folders = (*TOUCHES.get(command, ()), *named)
    for name in before.keys() | after.keys():
        if name.parts[0] not in folders and name != mutated:
            assert before.get(name) == after.get(name), f"{name} was written by {command}"
    for log in ("out/samples.jsonl", "run/lives.jsonl"):
        require_kept(sound(before.get(Path(log), b"")), sound(after.get(Path(log), b"")))
    if sentence is None:
        return
    assert len(sentence) < 1500, sentence
    assert "\n" not in sentence, sentence
    if command in ("prepare", "remove", "merge"):
        for name in before:
            if name.parts[:2] in (("data", "bank"), ("data", "corpus")):
                assert after.get(name) == before[name], f"{name} was changed and then refused"


def sound(log):
    """The lines of a log that can be read."""
    lines = []
    for line in log.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(line), dict):
                lines.append(line)
    return lines


def require_kept(before, after):
    assert not [line for line in before if line not in after], "a line was lost"


def spoiled(content, draw):
    """A file's content with a value replaced, cut off, or with other bytes in it."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice(BYTES)
    if kind == 1:
        return content[: draw.randrange(len(content) + 1)]
    if kind == 2 and content:
        wrong = bytearray(content)
        for _ in range(draw.choice((1, 1, 8))):
            wrong[draw.randrange(len(wrong))] = draw.randrange(256)
        return bytes(wrong)
    with contextlib.suppress(Exception):
        if content.count(b"\n") > 1 and content[:1] == b"{" and content.find(b"}\n{") > 0:
            lines = content.splitlines(keepends=True)
            place = draw.randrange(len(lines))
            lines[place] = changed(lines[place], draw) + b"\n"
            return b"".join(lines)
        return changed(content, draw)
    return content + draw.choice((b"\xff", b"\0", b"{", b"x", b"\n\n", b'{"a": 1}\n'))


FILES = {
    "prepare": ("folder/", "data/", "chain/vqgan", "chain/clip", "chain/text"),
    "verify": ("data/bank",),
    "audit": ("data/bank", "chain/clip"),
    "query": ("data/bank", "chain/clip"),
    "remove": ("data/",),
    "merge": ("data/",),
    "train": ("run/", "data/"),
    "generate": ("chain/", "out/"),
}
TRIALS = {
    "prepare": 30,
    "verify": 20,
    "audit": 6,
    "query": 10,
    "remove": 20,
    "merge": 20,
    "train": 12,
    "generate": 12,
}
"""Of each command; `FUZZ=10` makes ten times as many."""
MORE = int(os.environ.get("FUZZ", "1"))


@pytest.mark.parametrize("command", COMMANDS)
def test_spoiled_files(world, command):
    draw, faults, refused = random.Random(f"files {command}"), [], 0
    for number in range(MORE * TRIALS[command]):
        world.restore()
        names = [
            name
            for name in sorted(world.files())
            if str(name).startswith(FILES[command]) and world.home / name not in world.canaries
        ]
        weighty = [n for n in names if n.suffix in (".json", ".jsonl", ".npy")]
        name = draw.choice(weighty if weighty and draw.random() < 0.6 else names)
        path = world.home / name
        content = spoiled(path.read_bytes(), draw)
        match draw.randrange(16):
            case 0:
                path.unlink()
            case 1:
                path.unlink()
                path.mkdir()
            case 2 | 3:
                path.unlink()
                os.mkfifo(path)
            case 4:
                path.unlink()
                path.symlink_to(path.name)
            case 5:
                path.unlink()
                path.symlink_to("/dev/zero")
            case _:
                path.write_bytes(content)
        before = world.files()
        try:
            steps = ["--train.steps", "3"] if command == "train" else []
            sentence = world.run(command, [*world.options, *steps])
            refused += sentence is not None
            check(world, command, sentence, before, name)
        except Exception as error:
            faults.append(f"{number}: {name}, {content[:80]!r}: {where(error)}")
    assert not faults, "\n".join(faults)
    assert refused >= TRIALS[command] // 6, "hardly anything was damaged"


@contextlib.contextmanager
def full_disk(most):
    """No file can become larger; a file that is may not be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiled = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", compiled)


@pytest.mark.parametrize("command", ["prepare", "remove", "merge", "train", "generate"])
def test_full_disks(world, command):
    """Wherever the room ends, the same command does its work once there is some."""
    draw, faults, refused = random.Random(f"full {command}"), [], 0
    options = [*world.options, *(["--train.steps", "4"] if command == "train" else [])]
    for number in range(MORE * 6):
        world.restore()
        if command == "prepare":  # something else, so that all is made anew
            options = [*world.options, "--seed", str(number)]
        before, most = world.files(), int(10 ** draw.uniform(0, 5))
        try:
            with full_disk(most):
                sentence = world.run(command, options)
            refused += sentence is not None
            check(world, command, sentence, before, None)
            again = world.run(command, options)
            assert again is None, f"with room: {again}"
            check(world, command, None, before, None)
            left = [n for n in world.files() if n.name.endswith((".part", ".new", ".lock"))]
            assert not [n for n in left if world.home / n not in world.canaries], left
        except Exception as error:
            faults.append(f"{number}: {most} bytes: {where(error)}")
    assert not faults, "\n".join(faults)
    assert refused >= 3


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_odd_options(world, command):
    draw, faults = random.Random(f"options {command}"), []
    names = [name for name, _ in _option_types(Experiment) if not re.search("mesh|workdir", name)]
    for number in range(MORE * 20):
        world.restore()
        before, name, word = world.files(), draw.choice(names), draw.choice(WORDS)
        odd = [name] if name.startswith("--no-") or ".no-" in name else [name, word]
        try:
            sentence = world.run(command, [*world.options, "--train.steps", "3", *odd])
            named = [word] if name in ("--data.bank", "--data.corpus") else []
            check(world, command, sentence, before, None, named)
        except Exception as error:
            faults.append(f"{number}: {' '.join(odd)}: {where(error)}")
    assert not faults, "\n".join(faults)


def where(error):
    """An error, and the line of this project that it came from."""
    trace, last = error.__traceback__, ""
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if "/cm3jax/" in file or "/launch/" in file:
            last = f"{file.split('/')[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} ({last})"[:400]
