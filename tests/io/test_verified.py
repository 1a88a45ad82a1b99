"""A large file's checksum is compared once, and again when it may have changed."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from cm3jax.io import verified
from cm3jax.io.verified import is_verified


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """The files whose checksum was computed; all files count as large."""
    monkeypatch.setattr(verified, "_SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return []


def test_a_file_is_compared_once_for_as_long_as_it_is_the_same(tmp_path, computed):
    def checksum(path):
        computed.append(Path(path).name)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert [is_verified(path, right, checksum) for _ in range(3)] == [True] * 3
    assert computed == ["a"]
    os.symlink(path, tmp_path / "link")
    assert is_verified(tmp_path / "link", right, checksum)
    assert computed == ["a"]
    shutil.copy2(path, copy)  # of the same size and time
    assert is_verified(copy, right, checksum)
    assert computed == ["a", "b"]
    # Of the same size. Linux before 6.13 dates all that is written within a few ms alike.
    time.sleep(0.02)
    path.write_bytes(b"weighty")
    assert [is_verified(path, right, checksum) for _ in range(2)] == [False] * 2
    assert computed == ["a", "b", "a", "a"], "damage is never remembered"
    other = hashlib.sha256(b"weighty").hexdigest()
    assert is_verified(path, other, checksum)
    assert not is_verified(path, right, checksum)
    for note in (tmp_path / "cache").rglob("*.json"):
        note.write_text("{")
    assert is_verified(path, other, checksum)


def test_a_damaged_copy_that_keeps_the_time_is_compared(tmp_path, computed):
    def checksum(path):
        return Path(path).read_text()

    path, backup = tmp_path / "a", tmp_path / "backup"
    path.write_text("weights")
    shutil.copy2(path, backup)
    assert is_verified(path, "weights", checksum)
    before = os.stat(path)
    backup.write_text("weighty")
    os.utime(backup, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(0.02)  # as above
    shutil.copy2(backup, path)  # into the same file
    after = os.stat(path)
    for same in ("st_size", "st_mtime_ns", "st_ino"):
        assert getattr(after, same) == getattr(before, same)
    assert not is_verified(path, "weights", checksum)


def test_without_a_cache_it_is_compared_each_time(tmp_path, computed):
    def checksum(path):
        computed.append(path)
        return "right"

    (tmp_path / "cache").write_text("no folder")
    (tmp_path / "a").write_bytes(b"weights")
    assert [is_verified(tmp_path / "a", "right", checksum) for _ in range(2)] == [True] * 2
    assert len(computed) == 2


def test_a_small_file_is_compared_each_time(tmp_path, computed, monkeypatch):
    monkeypatch.setattr(verified, "_SMALL", 1 << 20)
    (tmp_path / "a").write_bytes(b"weights")
    assert is_verified(tmp_path / "a", "right", lambda _: "right")
    assert not is_verified(tmp_path / "a", "right", lambda _: "wrong")
    assert not (tmp_path / "cache").exists()
