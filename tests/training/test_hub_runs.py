"""Ids of runs on the hub; what is downloaded and read is in `tests/interop/test_hub.py`."""

import huggingface_hub
import pytest

from cm3jax.errors import UserError
from cm3jax.training.hub_runs import is_hub_id, newest_snapshot


def test_a_revision_may_be_a_branch_with_a_slash(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, revision, allow_patterns: asked.append((name, revision)) or str(tmp_path),
    )
    (tmp_path / "params.safetensors").touch()
    assert newest_snapshot("hf:a/b@refs/pr/1") == newest_snapshot("hf:a/b") == str(tmp_path)
    assert asked == [("a/b", "refs/pr/1"), ("a/b", None)]


def test_ids_and_paths():
    assert is_hub_id("hf:a/b")
    assert not is_hub_id("runs/hf:a")
    for name in ("hf:", "hf:name", "hf:a/b/c", "hf:a/b@"):
        with pytest.raises(UserError, match="is not an id of the hub"):
            newest_snapshot(name)
