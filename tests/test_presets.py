"""Experiments by name, in this checkout and from a wheel."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
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


def test_a_mistyped_name_raises_user_error():
    with pytest.raises(UserError, match=r"there is no experiment 'cm3leon_7' \(did you mean cm3le"):
        cm3jax.load_experiment("cm3leon_7")


def test_names_are_found_in_any_locale():
    """Files of the project are UTF-8, whatever the machine's own files are."""
    strict = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "import locale, cm3jax.presets as presets;"
        "print(locale.getpreferredencoding(), len(presets.experiment_names()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | strict | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["ANSI_X3.4-1968", str(len(experiment_names()))], done.stderr


SDIST = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """What a source distribution of this checkout holds."""
    tmp_path = tmp_path_factory.mktemp("sdist")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    unused = shutil.ignore_patterns("__pycache__", "weights", "results", "*.egg-info")
    for name in ("cm3jax", "experiments"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=unused)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    call = [sys.executable, "-c", SDIST, tmp_path]
    done = subprocess.run(call, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        assert not [one.name for one in archive if one.issym() or one.islnk()]
        # Debian's own Python 3.11.2 knows no filter; later ones warn without.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    return tmp_path / f"cm3jax-{cm3jax.__version__}"


def every_preset(place, *, cwd):
    """Where the library that is found at `place` is, and its experiments by name."""
    there = os.environ | {"PYTHONPATH": str(place)}
    call = [sys.executable, "-P", "-W", "error", "-c", ALL]
    done = subprocess.run(call, env=there, cwd=cwd, capture_output=True, text=True, check=True)
    where, found = json.loads(done.stdout)
    assert Path(where).is_relative_to(place)
    return found


def ours():
    found = {name: to_dict(cm3jax.load_experiment(name)) for name in experiment_names()}
    return json.loads(json.dumps(found))


def test_sources_hold_every_preset(unpacked, tmp_path):
    assert every_preset(unpacked, cwd=tmp_path) == ours()


@pytest.mark.slow
def test_a_wheel_from_the_sources_holds_every_preset(unpacked, tmp_path):
    installed = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    pip = [sys.executable, "-m", "pip", "wheel", *options, tmp_path, unpacked]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)  # all that installing a wheel of Python alone does
    assert {path.name for path in installed.iterdir() if path.is_dir()} == {
        "cm3jax",
        f"cm3jax-{cm3jax.__version__}.dist-info",
    }
    page = installed / "cm3jax/serve/page"
    assert {path.name for path in page.iterdir()} >= {"index.html", "page.css", "page.js"}
    presets = installed / "cm3jax/experiments"
    assert presets.joinpath("__init__.py").read_bytes() == (
        ROOT.joinpath("experiments/__init__.py").read_bytes()
    )
    assert not (presets / "claims").exists()
    assert not (presets / "miniature/scores").exists()
    assert every_preset(installed, cwd=tmp_path) == ours()


def test_a_checkout_has_no_links():
    """They are lost in zip archives and on other systems."""
    folders = [ROOT / name for name in ("cm3jax", "docs", "experiments", "launch", "tests")]
    assert [path for top in folders for path in top.rglob("*") if path.is_symlink()] == []
