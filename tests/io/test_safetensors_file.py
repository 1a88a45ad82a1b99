"""Files of safetensors, against the official library."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cm3jax.errors import UserError
from cm3jax.io import safetensors_file

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.arange(6).astype(ml_dtypes.bfloat16),
    "scalar": np.full((), 3, np.float16),
    "none": np.zeros((0, 3), np.int32),
    "long": np.arange(3),
    "yes": np.array([True, False]),
}


def test_files_of_the_library_are_read(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x", {"who": "me"})
    found = safetensors_file.read_file(tmp_path / "x")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].read(...).dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(...), array)
    np.testing.assert_array_equal(found["a"].read(np.s_[1, :2]), ARRAYS["a"][1, :2])
    assert safetensors_file.read_metadata(tmp_path / "x") == {"who": "me"}


def test_the_library_reads_our_files(tmp_path):
    outputs = {name: safetensors_file.whole(array) for name, array in ARRAYS.items()}
    outputs["parts"] = safetensors_file.Output(
        "BF16", (2, 2), lambda: iter(np.eye(2, dtype=np.float32))
    )
    safetensors_file.write_file(tmp_path / "x", outputs, {"who": "me"})
    found = safetensors.numpy.load_file(tmp_path / "x")
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["parts"].astype(np.float32), np.eye(2))


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    short = safetensors_file.Output("F32", (3,), lambda: [np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match="bytes"):
        safetensors_file.write_file(tmp_path / "x", {"short": short}, {})
    assert not list(tmp_path.iterdir())


def _header(**entry):
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry})
    return len(text).to_bytes(8, "little") + text.encode() + bytes(8)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "damaged or no"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00", "damaged or no"),
        (b"\x02" + bytes(7) + b"[]", "damaged or no"),
        (b"\x02" + bytes(7) + b"\xff\xff", "damaged or no"),
        (_header()[:-1], "ends at byte"),
        (_header(shape=[3]), "makes no sense"),
        (_header(shape=[-2]), "makes no sense"),
        (_header(shape="x"), "makes no sense"),
        (_header(data_offsets=[8, 0]), "makes no sense"),
        (_header(data_offsets=[-8, 0]), "makes no sense"),
        (_header(dtype="F8_E4M3"), "F8_E4M3"),
    ],
)
def test_files_that_are_not_safetensors_raise_user_error(tmp_path, content, match):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=match):
        safetensors_file.read_file(tmp_path / "x")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_its_place_is_one_sentence(tmp_path, make):
    make(tmp_path / "x")
    for read in (safetensors_file.read_file, safetensors_file.read_metadata):
        with pytest.raises(UserError, match=r"x .* is a (pipe|folder)"):
            read(tmp_path / "x")
