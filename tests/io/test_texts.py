import os

import pytest
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_json
from cm3jax.io.texts import (
    LONGEST_REASON,
    brief,
    clean_text,
    decode_text,
    file_state,
    leads_out,
    read_regular,
    shorten,
    split_lines,
)


@pytest.mark.parametrize(
    "inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"]
)
def test_only_line_ends_end_lines(inside):
    assert split_lines(f"a{inside}b\nc\r\n\r\nd") == [f"a{inside}b", "c", "", "d"]
    assert split_lines("a\n") == ["a"]
    assert split_lines("") == []


def test_a_byte_order_mark_is_no_text():
    assert decode_text("\ufeffcaf\xe9".encode()) == "caf\xe9"
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte E9 at 3\)"):
        decode_text(b"caf\xe9")


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json", "it") == [1]
    (tmp_path / "a.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(UserError, match=r"it is damaged: .*is not UTF-8"):
        read_json(tmp_path / "a.json", "it")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"it is damaged: .*nested too deep"):
        read_json(tmp_path / "a.json", "it")


def test_captions_are_stripped_and_odd_spaces_are_spaces():
    for written in (
        "a red fox\n",
        "a red fox\r\n",
        "\ufeffa red fox",
        "  a red fox ",
        " \ufeff a red fox",
    ):
        assert clean_text(written) == "a red fox"
    assert clean_text("a red\x85fox\x0cruns") == "a red fox runs"
    assert clean_text("a\u2028b\tc") == "a\u2028b\tc"
    for wrong in ("a\x00", "a\x07b", "\u202eab", "\ud800"):
        with pytest.raises(ValueError, match="its text holds"):
            clean_text(wrong)


def test_quoted_values_are_short():
    assert brief("abc") == "'abc'"
    assert len(brief("x" * 10_000_000)) < 70
    assert len(brief(["x" * 1000] * 1000)) < 70
    assert len(shorten("x " * 10_000_000)) <= LONGEST_REASON + 1
    assert shorten("one\ntwo") == "one two"


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"abc")
    for name, reason in (("pipe", "is a pipe"), ("zero", "is a device"), (".", "is a folder")):
        with pytest.raises(ValueError, match=reason):
            read_regular(tmp_path / name)
    assert read_regular(tmp_path / "file") == b"abc"
    with pytest.raises(ValueError, match="it has 3 bytes, more than 2"):
        read_regular(tmp_path / "file", 2)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


def test_a_file_that_is_written_again_has_another_state(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    before = file_state(path)
    assert file_state(path) == before
    os.utime(path, ns=(0, before[1] + 1))
    assert file_state(path) != before


def test_links_out_of_a_folder_are_seen(tmp_path):
    folder, other = tmp_path / "data", tmp_path / "store"
    for path in (folder, other):
        path.mkdir()
    (other / "x.png").write_bytes(b"x")
    (folder / "own.png").write_bytes(b"x")
    (folder / "near.png").symlink_to("own.png")
    (folder / "far.png").symlink_to(other / "x.png")
    (folder / "mounted").symlink_to(other)
    folder = epath.Path(folder)
    assert leads_out(folder / "far.png", folder)
    for inside in ("own.png", "near.png", "mounted/x.png", "missing.png"):
        assert not leads_out(folder / inside, folder)
