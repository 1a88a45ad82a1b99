"""`launch.generate --task` with the shipped tuned weights: a held-out case of every task."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from cm3jax.emblems.task_cases import NAMES, asked
from cm3jax.tasks import TASKS
from experiments.miniature.scores.task_scores import JUDGES
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


@pytest.mark.slow  # processes that compile as users do; `launch/test_tasks.py` asks in this one
@pytest.mark.parametrize("name", NAMES)
def test_a_held_out_case_is_answered(name, tmp_path):
    case = asked(name, "prompts", 0)
    # Greedily: the noise of sampling depends on the prompt, and that on the image's path. In a
    # process of its own, as users compile: the image tokenizer has codes that are nearly equal, and
    # the options of the tests' compiler take another one for the background.
    options = ("--temperature", "0", "--out", str(tmp_path))
    subprocess.run(
        [sys.executable, "-m", "launch.generate", *words(case, tmp_path), *options],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        check=True,
    )
    (line,) = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    answer = tuple(segment(one, tmp_path) for one in line["segments"])
    for _, judge in JUDGES[name]:
        assert judge(case, answer) >= 0.75
