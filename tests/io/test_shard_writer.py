import json
import os

import numpy as np
import pytest
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.array_records import Records
from cm3jax.io.files import read_json
from cm3jax.io.shard_writer import ShardWriter, manifest_has, shard_files


def write(writer, number, records=5):
    values = np.arange(records * 2, dtype=np.float32).reshape(-1, 2) + 100 * number
    content = [f"{number}-{i}".encode() for i in range(records)]
    writer.write(number, content, {"lengths": values}, {"refused": number})


def finish(writer, shards):
    return writer.finish(
        shards, ["lengths"], lambda notes, files: {"sum": sum(n["refused"] for n in notes)}
    )


def content(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_shards_in_any_order_give_the_same_bytes(tmp_path):
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1, 0))):
        writer = ShardWriter(tmp_path / name, "this")
        for number in order:
            write(writer, number, records=5 - number)
        assert writer.records(3) == 12
        assert not writer.complete
        finish(writer, 3)
        assert writer.complete
    assert content(tmp_path / "a") == content(tmp_path / "b")
    manifest = read_json(tmp_path / "a" / "manifest.json", "it")
    assert manifest["sum"] == 3
    assert list(manifest["shards"].values()) == [5, 4, 3]
    assert list(Records(tmp_path / "a", manifest["shards"], ""))[5] == b"1-0"
    joined = np.load(tmp_path / "a" / "lengths.npy")
    assert joined.shape == (12, 2)
    assert joined[5, 0] == 100
    whole = tmp_path / "whole.npy"
    np.save(whole, joined)
    assert whole.read_bytes() == (tmp_path / "a" / "lengths.npy").read_bytes()


def test_a_folder_whose_name_is_not_utf8_is_refused_before_any_work(tmp_path, monkeypatch):
    """The library that writes records takes no such path, however it is spelt here."""
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(odd)
    monkeypatch.chdir(odd)
    with pytest.raises(UserError, match=r"caf.* is not UTF-8, and a bank cannot be written there"):
        ShardWriter("bank", "this").require_ours("a bank")
    ShardWriter(tmp_path / "caf\u00e9", "this").require_ours("a bank")


@pytest.mark.parametrize("scrap", [".documents-00000.array_record.77.part", "shard-00007.json"])
def test_scraps_of_killed_work_are_deleted(tmp_path, scrap):
    writer = ShardWriter(tmp_path / "a", "this")
    write(writer, 0)
    (writer.parts / scrap).write_bytes(b"half")
    finish(writer, 1)
    assert os.listdir(tmp_path) == ["a"]
    assert sorted(content(tmp_path / "a")) == [
        "documents-00000.array_record",
        "lengths.npy",
        "manifest.json",
    ]


def test_shards_of_something_else_do_not_count(tmp_path):
    write(ShardWriter(tmp_path / "a", "this"), 0)
    other = ShardWriter(tmp_path / "a", "that")
    assert not other.has(0)
    write(other, 0, records=0)
    finish(other, 1)
    assert not ShardWriter(tmp_path / "a", "this").complete
    assert np.load(tmp_path / "a" / "lengths.npy").shape == (0, 2)


def test_columns_of_other_settings_are_not_joined(tmp_path):
    first = ShardWriter(tmp_path / "a", "this")
    values = np.zeros((1, 2), np.float32)
    first.write(0, [b"0"], {"lengths": values, "answers": values}, {"refused": 0})
    writer = ShardWriter(tmp_path / "a", "that")
    write(writer, 0)
    assert not (writer.parts / "answers-00000.npy").exists()


def test_a_shard_that_is_made_again_does_not_count_until_it_is_whole(tmp_path):
    before, now = (ShardWriter(tmp_path / "a", "this", states=(state,)) for state in "ab")
    write(before, 0)

    def killed():
        yield b"0-0"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        now.write(0, killed(), {"lengths": np.zeros((1, 2), np.float32)}, {"refused": 0})
    assert not before.has(0)
    assert not now.has(0)


def test_shards_whose_records_changed_are_told(tmp_path):
    before = ShardWriter(tmp_path / "a", "this", states=("a", "b", "c"))
    for number in range(3):
        write(before, number)
    now = ShardWriter(tmp_path / "a", "this", states=("a", "x", "y", "z"))
    assert [now.has(number) for number in range(4)] == [True, False, False, False]
    (one, first), (two, second) = now.outdated("lengths")
    assert (one, two, first[0, 0], second[0, 0]) == (1, 2, 100, 200)
    assert not ShardWriter(tmp_path / "a", "that", states=("x", "y")).outdated("lengths")


@pytest.mark.parametrize("what", ["deep", "bytes", "pipe"])
def test_a_folder_without_our_manifest_is_somebody_else_s(tmp_path, what):
    """Nothing is raised for it but the refusal, and no pipe is waited for."""
    folder = epath.Path(tmp_path)
    if what == "pipe":
        os.mkfifo(tmp_path / "manifest.json")
    else:
        content = {"deep": b"[" * 100_000, "bytes": b"\xff"}[what]
        (tmp_path / "manifest.json").write_bytes(content)
    assert shard_files(folder) is None
    assert not manifest_has(folder, "counts")
    with pytest.raises(UserError, match="does not hold a corpus; nothing was changed there"):
        ShardWriter(tmp_path, "this").require_ours("a corpus")


@pytest.mark.parametrize("name", ["vectors.npy", "scores-00001.npy", "shard-00000.json"])
def test_a_column_by_itself_is_somebody_else_s(tmp_path, name):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / name).write_text("mine")
    manifest = {"encoder": "encoder.onnx", "files": {name: {"url": "https://example.org"}}}
    for content in (None, {"made_from": "x", "files": [name]}, manifest):
        if content is not None:
            (folder / "manifest.json").write_text(json.dumps(content))
        assert shard_files(epath.Path(folder)) is None
        with pytest.raises(UserError, match="does not hold a corpus; nothing was changed there"):
            ShardWriter(folder, "this").require_ours("a corpus")
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_parts_whose_deletion_is_interrupted_are_known_until_nothing_is_left(
    tmp_path, monkeypatch, at
):
    writer = ShardWriter(tmp_path / "a", "this")
    write(writer, 0)
    calls = []

    def stopped(path, missing_ok=False):
        calls.append(path)
        if len(calls) == at:
            raise KeyboardInterrupt
        os.unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(type(writer.parts), "unlink", stopped)
        with pytest.raises(KeyboardInterrupt):
            writer.discard()
    ShardWriter(tmp_path / "a", "this").require_ours("a corpus")
    writer.discard()
    assert not writer.parts.exists()


def test_a_stranger_s_file_among_the_parts_stays(tmp_path):
    writer = ShardWriter(tmp_path / "a", "this")
    write(writer, 0)
    (writer.parts / "thesis-00000.npy").write_text("words")
    write(writer, 0)
    finish(writer, 1)
    assert (tmp_path / "a" / "thesis-00000.npy").read_text() == "words"


@pytest.mark.parametrize("name", ["lengths-00001.npy", "documents-00001.array_record"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "a folder"])
def test_a_shard_that_lacks_a_file_is_made_again(tmp_path, name, damage):
    writer = ShardWriter(tmp_path / "a", "this")
    for number in range(2):
        write(writer, number)
    path = writer.parts / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(whole[:-4])
    elif damage == "a folder":
        path.mkdir()
    assert [writer.has(number) for number in range(2)] == [True, False]
    if damage == "a folder":
        path.rmdir()
    write(writer, 1)
    finish(writer, 2)
    assert np.load(tmp_path / "a" / "lengths.npy")[5, 0] == 100


def test_notes_that_name_no_columns_are_of_an_earlier_version(tmp_path):
    writer = ShardWriter(tmp_path / "a", "this")
    write(writer, 0)
    path = writer.parts / "shard-00000.json"
    notes = read_json(path, "notes")
    for fields in ({"columns": None}, {}):
        del notes["columns"]
        notes |= fields
        path.write_text(json.dumps(notes))
        assert writer.has(0)
