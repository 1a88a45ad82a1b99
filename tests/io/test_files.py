import concurrent.futures
import io
import os
import resource

import numpy as np
import pytest
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io import files
from cm3jax.io.files import (
    digest,
    map_array,
    read_arrays,
    read_json,
    read_json_lines,
    require_replaceable,
    sweep_scratch,
    write_atomic,
    write_first,
    write_json,
)


def test_a_write_leaves_one_whole_file(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "x").write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_atomic(tmp_path / "x", bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "x")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_all_of_several_first_writers_read_the_file_that_won(tmp_path):
    path = tmp_path / "deep" / "settings.json"

    def claim(number):
        write_first(path, {"number": number})
        return read_json(path, "the settings")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(claim, range(200)))
    assert len({one["number"] for one in found}) == 1
    assert [one.name for one in path.parent.iterdir()] == ["settings.json"]


def test_in_a_bucket_the_first_file_is_written_as_any(monkeypatch):
    path, written = epath.Path("gs://bucket/settings.json"), []
    monkeypatch.setattr(type(path), "exists", lambda _: False)
    monkeypatch.setattr(files, "write_json", lambda *what: written.append(what))
    write_first(path, {"number": 1})
    assert written == [(path, {"number": 1})]


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros(3))
    np.save(tmp_path / "b.npy", np.zeros((0, 3), np.int32))
    with pytest.raises(ValueError, match="ValueError"):
        map_array(tmp_path / "a.npz")
    assert map_array(tmp_path / "b.npy").shape == (0, 3)


def test_one_of_several_concurrent_writers_wins_as_a_whole(tmp_path):
    path, contents = tmp_path / "a", [bytes([number]) * 300_000 for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomic(path, content), contents * 20))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip_and_errors(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2], "a": None})
    assert read_json(tmp_path / "a.json", "it") == {"a": None, "b": [1, 2]}
    with pytest.raises(UserError, match="the manifest is missing"):
        read_json(tmp_path / "none.json", "the manifest")
    (tmp_path / "a.json").write_text('{"b": [1,')
    with pytest.raises(UserError, match="the manifest is damaged"):
        read_json(tmp_path / "a.json", "the manifest")


def test_digests_tell_values_types_and_borders_apart():
    values = [
        digest("ab", "c"),
        digest("a", "bc"),
        digest(np.zeros(4, np.int32)),
        digest(np.zeros(4, np.float32)),
        digest(np.zeros((2, 2), np.int32)),
    ]
    assert len(set(values)) == len(values)
    assert digest("ab", "c") == values[0]


def test_json_nested_too_deeply_is_damage(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="the list is damaged"):
        read_json(tmp_path / "x.json", "the list")


def test_lines_that_are_no_objects_are_told_apart(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [b'{"a": 1}\n', b"\xff{}\n", b"\n", b"[" * 100_000 + b"\n", b'{"a": 2}\n', b'{"a": ']
    path.write_bytes(b"".join(lines))
    assert read_json_lines(path) == ([{"a": 1}, {"a": 2}], [lines[1], lines[3], lines[5]])
    assert read_json_lines(tmp_path / "absent.jsonl") == ([], [])


def test_what_killed_writers_left_is_swept(tmp_path):
    kept = (".b.json.0123abcd.part", ".a.json.part", "a.json.0123abcd.part")
    names = (".a.json.0123abcd.part", ".a.json.4711.part", *kept)
    for name in names:
        (tmp_path / name).write_text("half")
    sweep_scratch(tmp_path, r"a\.json|c\.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    sweep_scratch(tmp_path / "nowhere", r"a\.json")


def test_ctrl_c_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(epath.Path(tmp_path)), "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.json", "{}")
    assert not list(tmp_path.iterdir())


def test_folders_and_devices_are_not_replaced(tmp_path):
    """As root, renaming over /dev/null would break the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match="is a folder or a device and not a file"):
            write_atomic(tmp_path / name, "new")
        with pytest.raises(UserError, match="is a folder or a device; give a file for the page"):
            require_replaceable(tmp_path / name, lambda content: True, "the page")
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_only_what_is_ours_may_be_replaced(tmp_path):
    path = tmp_path / "a"

    def is_ours(content):
        return content.startswith(b"ours")

    for content in (None, b"", b"ours, old"):
        if content is not None:
            path.write_bytes(content)
        require_replaceable(path, is_ours, "the page")
    path.write_bytes(b"a thesis")
    with pytest.raises(UserError, match="a is another file, which the page would replace"):
        require_replaceable(path, is_ours, "the page")


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match=r"log.jsonl would be a log, but it is a pipe, not a file"):
        read_json_lines(tmp_path / "log.jsonl")


def test_arrays_are_read_or_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(5000), b=np.zeros(3))
    assert read_arrays(path).keys() == {"a", "b"}
    assert read_arrays(path, "b")["b"].tolist() == [0, 0, 0]
    sound = path.read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    place = sound.index(b"a.npy") + 200  # in what is compressed
    damaged = sound[:place] + bytes(200) + sound[place + 200 :]
    central = sound.index(b"PK\x01\x02") + 10
    method = sound[:central] + b"\x63\0" + sound[central + 2 :]
    pickled = io.BytesIO()
    np.savez(pickled, a=np.array([{}], object))
    for content in (b"", b"x", sound[:-9], single.getvalue(), damaged, method, pickled.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\w+$"):
            read_arrays(path)
    path.write_bytes(sound)
    with pytest.raises(ValueError, match="KeyError"):
        read_arrays(path, "a", "c")
    with pytest.raises(ValueError, match="FileNotFoundError"):
        read_arrays(tmp_path / "b.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="ValueError"):
        read_arrays(tmp_path / "pipe.npz")
