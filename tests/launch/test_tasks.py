"""`launch.generate --task`, with untrained weights: every task runs, mistakes are one sentence."""

import json

import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.tasks import TASKS
from launch import generate
from launch.tasks import find, task_prompt, text_field


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    testing.write_chain(directory)
    PIL.Image.fromarray(testing.pictures(1, seed=3)[0]).save(directory / "x.png")
    return directory


@pytest.mark.parametrize(
    ("words", "kind", "beginning"),
    [
        (("vqa", "what is it?", "--image", "X"), "text", "Question: what is it? Answer: <mask>"),
        (("segmentation", "a red fox", "--image", "X"), "file", "Make high quality image from a"),
    ],
)
def test_tasks_run_from_the_shell(chain, tmp_path, capsys, words, kind, beginning):
    image = str(chain / "x.png")
    options = [image if word == "X" else word for word in words]
    common = ("--run", str(chain / "decoder"), "--out", str(tmp_path))
    generate.command(["--task", *options, *common])
    (line,) = (tmp_path / "samples.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line[kind]
    assert line["prompt"].startswith(beginning)
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote 1 to ")


def test_every_task_that_takes_a_text_has_one_field_for_it():
    taken = {name: text_field(task) for name, task in TASKS.items()}
    assert taken["vqa"] == taken["science"] == "question"
    assert taken["editing"] == "instruction"
    assert taken["words"] == "text"
    assert taken["story"] == "beginning"
    assert taken["caption"] == taken["long_caption"] == taken["narration"] == ""
    assert {taken[name] for name in ("segmentation", "depth", "grounded")} == {"caption"}


def test_boxes_and_options_come_into_the_prompt():
    text = task_prompt(find("grounded"), "a circle", box="circle:10,10,90,120;ring:0,0,9,9")
    assert text.endswith("circle at (10, 10) -> (90, 120), ring at (0, 0) -> (9, 9)")
    asked = task_prompt(find("science"), "which?", "x.png", options="a, b")
    assert asked == ("Question: which?\nOptions: a, b\nAnswer: <mask><break><image:x.png><infill>")


def test_a_task_asks_the_tuned_weights_unless_a_run_is_named():
    words = ("a circle",)
    task = generate.with_defaults(generate.Options(words, task="words"))
    assert task.run.endswith("experiments/miniature/weights/sft")
    assert task.out == "runs/samples"  # not into the weights' folder
    named = generate.with_defaults(generate.Options(words, task="words", run="runs/mine"))
    assert (named.run, named.out) == ("runs/mine", "runs/mine/samples")
    edit = generate.with_defaults(generate.Options(("edit", "make it red <image:x.png>")))
    assert (edit.run, edit.out) == (task.run, task.out)
    plain = generate.with_defaults(generate.Options(words))
    assert plain.run.endswith("experiments/miniature/weights/decoder")
    assert plain.out == "runs/samples"
    shipped = generate.with_defaults(
        generate.Options(words, run="experiments/miniature/weights/sft")
    )
    assert shipped.out == "runs/samples"
    hub = generate.with_defaults(generate.Options(words, run="hf:me/fox"))
    assert hub.out == "runs/samples"
    elsewhere = generate.with_defaults(generate.Options(words, run="runs/mine", out="there"))
    assert elsewhere.out == "there"


def test_samples_of_a_checkpoint_go_into_its_run(tmp_path):
    """Training deletes a checkpoint with all that is in it when another one is the best."""
    run = tmp_path / "mine"
    asked = generate.Options(("a circle",), run=f"{run}/checkpoints/250")
    assert generate.with_defaults(asked).out == str(run.resolve() / "samples")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "vqs", "why?"), "did you mean vqa"),
        (("--task", "vqa", "why?"), "the task vqa takes image and question"),
        (("--task", "caption", "why?", "--image", "x.png"), "the task caption takes image"),
        (("--task", "grounded", "a", "--box", "circle"), "is not a box"),
        (("--task", "vqa", "a", "b"), "takes one text"),
        (("a", "--image", "x.png"), "inputs of a --task"),
    ],
)
def test_mistakes_raise_user_error(options, message, chain):
    with pytest.raises(UserError, match=message):
        generate.command([*options, "--run", str(chain / "decoder")])
