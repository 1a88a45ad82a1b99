"""The container file, as far as it can be tried without containers: its copies, its install, its
command."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import PIL.Image
import pytest

from cm3jax.serve import guard
from launch.cli import parse
from launch.serve import Options

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "launch/Dockerfile"


def instructions():
    """Each instruction and its argument, in order; continued lines are joined."""
    text = re.sub(r"\\\n", " ", FILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def argument(name):
    (found,) = (rest for word, rest in instructions() if word == name)
    return found


def copied():
    """What it copies, with the paths in the image."""
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                yield source, target


def test_it_copies_what_there_is_and_what_is_not_ignored():
    lines = Path(f"{FILE}.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept
    assert {source.split("/")[0] for source, _ in copied()} == kept


def test_it_installs_an_extra_that_there_is_for_a_python_that_is_tested():
    setup = (ROOT / "setup.py").read_text()
    (version,) = re.findall(r"python:(\d\.\d+)-slim", argument("FROM"))
    assert f'"Programming Language :: Python :: {version}"' in setup
    (install,) = (rest for word, rest in instructions() if word == "RUN" and "pip " in rest)
    (extra,) = re.findall(r'"\.\[(\w+)\]"', install)
    assert f'    "{extra}": [' in setup
    assert f"--constraint {(ROOT / 'requirements.lock').name}" in install


def test_its_command_is_one_that_the_server_takes():
    assert json.loads(argument("ENTRYPOINT")) == ["python", "-m", "launch.serve"]
    options = parse(Options, json.loads(argument("CMD")), "as the image does")
    assert (ROOT / options.run / "params.safetensors").exists()
    assert options.host == "0.0.0.0"
    assert str(options.port) == argument("EXPOSE")
    (asked,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", argument("HEALTHCHECK"))
    assert asked in guard._OPEN


@contextlib.contextmanager
def ended(process):
    """Asks the process to stop, and waits until it has."""
    try:
        yield
    finally:
        process.terminate()
        # uvicorn ends what is open, and then by the signal that it was given.
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.slow  # a process with jax, and an image
def test_what_it_copies_serves_the_shipped_weights(tmp_path):
    """In a folder with nothing else, from start to image."""
    image = tmp_path / "image"
    for source, target in copied():
        place = image / target / (Path(source).name if target.endswith("/") else "")
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, place, dirs_exist_ok=True, ignore=ignored)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    key = tmp_path / "key"
    key.write_text("secret\n")
    command = [{"/key": str(key)}.get(word, word) for word in json.loads(argument("CMD"))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, *json.loads(argument("ENTRYPOINT"))[1:], *command, "--port", "0"],
        cwd=image, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with contextlib.closing(process.stdout), ended(process):
        assert process.stdout is not None
        port = re.search(r":(\d+)$", process.stdout.readline().strip())
        assert port is not None
        url = f"http://127.0.0.1:{port[1]}/v1/images/generations"
        body = json.dumps({"prompt": "a large red circle at b3 on sand"}).encode()
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked, timeout=120)
        asked.add_header("Authorization", "Bearer secret")
        with urllib.request.urlopen(asked, timeout=120) as answer:
            content = json.load(answer)["data"][0]["b64_json"]
        assert PIL.Image.open(io.BytesIO(base64.b64decode(content))).size == (32, 32)
