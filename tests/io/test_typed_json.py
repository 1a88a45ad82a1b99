"""JSON of another form is one sentence that names the file and the field."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from cm3jax.errors import UserError
from cm3jax.io.typed_json import fits, read_fields, require_fields


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (int, [0, -3], [1.0, True, "1", None, [1]]),
        (float, [0.5, 3], ["1", None, True]),
        (str, ["", "a"], [1, None, ["a"]]),
        (bool, [True], [1, "true"]),
        (Any, [None, 1, {}], []),
        (list[int], [[], [1, 2]], [[1, "2"], {"a": 1}, 1, "12"]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "1"}, {"a": None}, [], 3]),
        (dict[str, dict[str, Any]], [{"a": {"b": None}}], [{"a": 1}]),
        (float | None, [None, 1.5], ["", []]),
        (Mapping[str, float], [{}, {"a": 1}], [{"a": "1"}, [], ""]),
        (Mapping[str, Any] | None, [None, {"a": []}], [[], 1, "a"]),
    ],
)
def test_values_fit_their_types(kind, right, wrong):
    assert all(fits(value, kind) for value in right)
    assert not any(fits(value, kind) for value in wrong)


def test_fields_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"records": 7, "other": null}')
    assert read_fields(path, {"records": int}, "the corpus") == {"records": 7, "other": None}
    with pytest.raises(UserError, match="the corpus is missing"):
        read_fields(tmp_path / "b.json", {}, "the corpus")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"records"', "{}", '{"records": "7"}'])
def test_another_form_names_file_and_field(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        read_fields(path, {"records": int}, "the corpus", "prepare it again")
    assert str(raised.value) == (
        f"{path} is damaged or of an earlier version (its 'records'); prepare it again."
    )


def test_values_that_are_not_objects_are_refused():
    with pytest.raises(UserError, match=r"^a\.json is damaged or of an earlier version; make it"):
        require_fields(json.loads("[1]"), {}, "a.json")
