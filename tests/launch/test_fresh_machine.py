"""The manual's commands in order, after a small quickstart in a fresh clone: they make what it
says."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cm3jax.emblems.looks import catalogue
from cm3jax.emblems.reader import read_scene
from cm3jax.emblems.wording import caption
from cm3jax.training.metrics import read_metrics
from tests.pages import require_sound
from tests.test_readme import COMMANDS, README, ROOT

CIRCLE = "a large red circle at b3 on sand"
SMALL = {
    "launch.train": ["--train.steps", "4"],
    "launch.prepare quickstart": ["--data.records", "400"],
    "launch.prepare miniature/decoder": ["--data.records", "400", "--data.emblems", "3000"],
    "launch.prepare miniature/sft": ["--data.records", "100"],
}
"""What makes a command short; everything else is run as it stands."""
ELSEWHERE = (
    *("launch.report --rerun", "launch.bench", "launch.convert clip openai/"),
    *("launch.convert vqgan vqgan.safetensors", "launch.evaluate diff a.json"),
    *("launch.evaluate emblems", "launch.evaluate heldout", "launch.plan cm3leon_7b --target"),
    "launch.serve",
)
"""Minutes, a download, a compiler for accelerators, files of the reader's own (a chain's, too), or
a server that never ends: other tests run these."""


def is_run(command: str) -> bool:
    """Whether the command is one of Python's that needs no files of the reader's own."""
    words = shlex.split(command)
    own = any(re.fullmatch(r"[A-Z_]{2,}", word) for word in words)
    return (
        words[:2] == ["python", "-m"] and not own and not any(part in command for part in ELSEWHERE)
    )


def pictures(said: str, clone: Path) -> list[np.ndarray]:
    paths = [clone / path for path in re.findall(r"^(\S+-[0-9a-f]{8}\.png)\b", said, re.MULTILINE)]
    return [np.asarray(PIL.Image.open(path).convert("RGB")) for path in paths]


def draws(text: str, count: int = 1) -> Callable[[str, Path], None]:
    """Requires images that the reader reads as this caption."""

    def check(said: str, clone: Path) -> None:
        shown = [read_scene(picture).scene for picture in pictures(said, clone)]
        assert [scene and caption(scene) for scene in shown] == [text] * count

    return check


def draws_the_emblem(said: str, clone: Path) -> None:
    known = catalogue(0)
    (picture,) = pictures(said, clone)
    (emblem,) = read_scene(picture).scene.emblems
    assert emblem.look == known.looks[known.names.index("zubetu")]
    assert emblem.place == 8  # the bottom right


def says(text: str) -> Callable[[str, Path], None]:
    """Requires lines, with ^ and $ at the ends of each."""

    def check(said: str, clone: Path) -> None:
        assert re.search(text, said, re.MULTILINE), said

    return check


def trained(run: str) -> Callable[[str, Path], None]:
    def check(said: str, clone: Path) -> None:
        assert read_metrics(clone / run)[-1]["step"] == 4
        require_sound((clone / run / "report.html").read_text(), clone / run)

    return check


def prepared(folder: str, records: int) -> Callable[[str, Path], None]:
    """Requires a corpus of this many training records, and its memory bank."""

    def check(said: str, clone: Path) -> None:
        report = json.loads((clone / folder / "corpus-report.json").read_text())
        assert report["splits"]["train"]["records"] == records
        assert (clone / folder / "bank" / "manifest.json").exists()

    return check


def licences(folder: Path) -> set[str]:
    """Those of a prepared bank and of the corpora beside it."""
    report = json.loads((folder / "corpus-report.json").read_text())
    bank = json.loads((folder / "bank" / "manifest.json").read_text())
    return {*bank["licences"]}.union(*(s["licence_shares"] for s in report["splits"].values()))


def page(path: str) -> Callable[[str, Path], None]:
    return lambda said, clone: require_sound((clone / path).read_text(), (clone / path).parent)


def job(said: str, clone: Path) -> None:
    subprocess.run(["bash", "-n", str(clone / "job.sh")], check=True)


CHECKS = {
    "launch.train quickstart": trained("runs/longer"),
    "launch.prepare show quickstart": says(r"<eoss>"),
    "launch.index audit": page("audit.html"),
    # An encoder of two steps finds some document or other: its best is all that can be asked for.
    "launch.index query": says(r"^0\.\d+  bank-\d+\b"),
    "launch.prepare miniature/decoder": prepared("data/miniature", 400),
    "launch.prepare miniature/sft": says(r"^story, train: 100 records in .*, 0 refused"),
    "launch.generate interleave": says(r"^runs/samples/\S+\.png"),
    "launch.index remove": says(r"removed [1-9]\d* documents"),
    'launch.generate text "a large': draws(CIRCLE, 4),
    'launch.generate text "the zubetu': draws_the_emblem,
    'launch.generate "<mask>': says(CIRCLE),
    "launch.generate caption": says(CIRCLE),
    "launch.generate infill": draws(CIRCLE),
    "launch.generate edit": draws("a large red diamond at b3 on sand"),
    "launch.generate --task vqa": says(r"scene\.png: red\b"),
    "launch.generate --task segmentation": draws(CIRCLE),
    "launch.generate --task grounded": draws(CIRCLE),
    "launch.train miniature/sft": trained("runs/miniature/sft"),
    "launch.report": page("runs/report/index.html"),
    "launch.plan": says("fits the memory of TPU v5 lite"),
    "launch.submit": job,
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_readme_is_true_on_a_fresh_machine(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    kept |= {"PYTHONPATH": str(clone)}

    def run(words: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=clone,
            env=kept,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr}"
        return done.stdout

    run(["python", "-m", "launch.quickstart", "--scale", "0.02"])
    assert len(licences(clone / "data" / "quickstart")) == 3
    quickstart = json.loads((clone / "runs" / "quickstart" / "metrics.json").read_text())
    assert quickstart["shipped"]["heldout_emblem_accuracy"]["docs_2"] == 1
    page("runs/quickstart/report.html")("", clone)
    checked = set()
    for command in filter(is_run, COMMANDS):
        more = next((more for part, more in SMALL.items() if part in command), [])
        print(command, flush=True)
        said = run([*shlex.split(command), *more])
        for part in (part for part in CHECKS if part in command):
            CHECKS[part](said, clone)
            checked.add(part)
    assert checked == CHECKS.keys()
    assert licences(clone / "data" / "quickstart") == {"CC-BY-4.0", "CC0-1.0"}  # of three
    code = re.search(r"^From Python\b.*:\n\n((?:    .*\n)+)", README, re.MULTILINE)[1]
    shown = (
        "import numpy; import PIL.Image; PIL.Image.fromarray(picture).save('python-00000000.png')"
    )
    lines = [line.strip() for line in code.splitlines()]
    run(["python", "-c", "\n".join([*lines[:-1], f"picture = {lines[-1]}", shown])])
    draws_the_emblem("python-00000000.png", clone)
