import os
import pwd
import tempfile

import pytest

from cm3jax.errors import UserError
from cm3jax.io.paths import cache_home, require_folder


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.touch(), lambda path: loop(path)])
def test_what_is_not_a_folder_is_refused_before_any_work(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(UserError, match="out is not a folder; give a folder for the samples"):
        require_folder(tmp_path / "out", "the samples")


def loop(path):
    path.symlink_to(path.name)


def test_folders_links_and_what_is_to_be_made_are_taken(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "later")
    for name in ("", "missing", "link"):
        require_folder(tmp_path / name, "the samples")
    require_folder("gs://bucket/samples", "the samples")


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write all
    with pytest.raises(UserError, match="may not be written to; give another folder"):
        require_folder(tmp_path, "the samples")


@pytest.fixture
def nameless(tmp_path, monkeypatch):
    """A user without a home, as in a container that is started with a number for its user; the
    folder for temporary files."""

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_whom_nothing_names_has_a_cache(nameless):
    own = nameless / f"cache-{os.getuid()}"
    assert cache_home() == own / "cm3jax"
    assert own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["writable", "link"])
def test_a_cache_that_others_can_have_filled_is_not_used(nameless, planted):
    """Compiled programs in it would be run."""
    own = nameless / f"cache-{os.getuid()}"
    if planted == "link":
        (nameless / "theirs").mkdir()
        own.symlink_to(nameless / "theirs")
    else:
        own.mkdir()
        own.chmod(0o777)
    found = cache_home()
    assert found == cache_home()
    assert found.parent.parent == nameless
    assert found.parent.name not in (own.name, "theirs")
    assert found.parent.stat().st_mode & 0o777 == 0o700
