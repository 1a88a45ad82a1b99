"""Experiments by name, in this checkout and from a wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cm3jax
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import to_dict
from cm3jax.presets import experiment_names

ROOT = Path(__file__).resolve().parent.parent

ALL = """
import json, cm3jax, cm3jax.presets
from cm3jax.io.experiment_json import to_dict
names = cm3jax.presets.experiment_names()
found = {name: to_dict(cm3jax.load_experiment(name)) for name in names}
print(json.dumps([cm3jax.__file__, found]))
"""


def test_a_mistyped_name_is_one_sentence():
    with pytest.raises(UserError, match=r"there is no experiment 'cm3leon_7' \(did you mean cm3le"):
        cm3jax.load_experiment("cm3leon_7")


def test_a_wheel_holds_every_preset(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("cm3jax", "experiments"):
        unused = shutil.ignore_patterns("__pycache__", "weights", "results")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unused)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    pip = [sys.executable, "-m", "pip", "wheel", *options, tmp_path, source]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)  # all that installing a wheel of Python alone does
    assert {path.name for path in installed.iterdir() if path.is_dir()} == {
        "cm3jax",
        f"cm3jax-{cm3jax.__version__}.dist-info",
    }
    assert not (installed / "cm3jax/experiments/claims").exists()
    there = os.environ | {"PYTHONPATH": str(installed)}
    call = [sys.executable, "-P", "-W", "error", "-c", ALL]
    done = subprocess.run(call, env=there, cwd=tmp_path, capture_output=True, text=True, check=True)
    where, found = json.loads(done.stdout)
    assert Path(where).is_relative_to(installed)
    ours = {name: to_dict(cm3jax.load_experiment(name)) for name in experiment_names()}
    assert found == json.loads(json.dumps(ours))
