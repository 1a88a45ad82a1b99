"""`launch.generate --task` with the shipped tuned weights: a held-out case of every task."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from cm3jax.data.emblems.tasks import NAMES, asked
from cm3jax.evaluate.tasks import JUDGES
from cm3jax.tasks import TASKS
from launch import generate
from launch.tasks import text_field


def words(case, folder):
    """What a user types for the case."""
    name, values = case.case.task.name, case.case.values
    told = ["--task", name]
    if text_field(TASKS[name]) in values:
        told.append(values[text_field(TASKS[name])])
    if "image" in values:
        PIL.Image.fromarray(values["image"]).save(folder / "given.png")
        told += ["--image", str(folder / "given.png")]
    if "boxes" in values:
        corners = r" at \((\d+), (\d+)\) -> \((\d+), (\d+)\)(, )?"
        told += ["--box", re.sub(corners, r":\1,\2,\3,\4;", values["boxes"]).strip(";")]
    if "options" in values:
        told += ["--options", values["options"]]
    return told


def segment(described, folder):
    """A text, or the pixels of a file."""
    if "text" in described:
        return described["text"]
    return np.asarray(PIL.Image.open(folder / described["file"]).convert("RGB"))


@pytest.mark.parametrize(
    "name", ["vqa", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != "vqa")]
)
def test_a_held_out_case_is_answered(name, tmp_path):
    case = asked(name, "prompts", 0)
    generate.command([*words(case, tmp_path), "--out", str(tmp_path)])
    (line,) = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    answer = tuple(segment(one, tmp_path) for one in line["segments"])
    for _, judge in JUDGES[name]:
        assert judge(case, answer) >= 0.75
