import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.errors import UserError
from launch import generate


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    testing.write_chain(directory)
    PIL.Image.fromarray(testing.pictures(1, seed=3)[0]).save(directory / "x.png")
    (directory / "x.txt").write_text("a red fox\n")
    return directory


@pytest.fixture
def call(chain, tmp_path, capsys):
    """Run the command; its printed lines, and the lines of `samples.jsonl`."""

    def run(*words, out=tmp_path / "out"):
        words = [word.replace("X.PNG", str(chain / "x.png")) for word in words]
        generate.command([*words, "--run", str(chain / "decoder"), "--out", str(out)])
        log = (out / "samples.jsonl").read_text().splitlines()
        return capsys.readouterr().out.splitlines(), [json.loads(line) for line in log]

    return run


def test_pictures_carry_their_recipe_and_are_listed(call):
    options = ("--samples", "2", "--retrieve", "1", "--docs", "X.PNG", "--guidance", "cfg:3")
    more = ("--temperature-range", "0.5", "1.5", "--top-p", "0.9", "--seed", "4")
    printed, log = call("text", "a red fox", *options, *more)
    assert printed[-1].startswith("wrote 2 to ")
    assert [line["sample"] for line in log] == [0, 1]
    for path, line in zip(printed, log, strict=False):
        image = PIL.Image.open(path)
        assert image.size == (16, 16)
        assert json.loads(image.text["cm3jax"]) == line
        assert line["prompt"] == "a red fox"
        assert line["decode"]["guidance_scale"] == 3
        assert line["decode"]["top_p"] == 0.9
        assert 0.5 <= line["temperature"] <= 1.5
        assert line["documents"][0]["path"].endswith("x.png")
        assert line["documents"][1]["key"].startswith("tiny-")
        assert len(line["ids"]) == 4
    again, same = call("text", "a red fox", *options, *more)
    assert again == printed
    assert same == log
    _, longer = call("text", "a red fox", *options, *more, "--seed", "5")
    assert longer[:2] == log
    assert len(longer) == 4


def test_documents_by_hand_bring_the_caption_beside_them(call):
    printed, _ = call("a cat", "--docs", "X.PNG", "--show-sequence")
    assert printed[0].startswith("<eos> 'a red fox' <break> I")
    assert "<break> 'a cat' <break> I" in printed[0]


def test_captions_are_printed_and_listed(call):
    call("<mask> <image:X.PNG> <infill>")
    printed, log = call("caption", "X.PNG")
    by_notation, alone = log
    assert alone["text"] in "\n".join(printed)
    assert by_notation["text"] == alone["text"]


def test_a_box_and_the_same_mask_draw_the_same(call, chain, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[8:, :8] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    prompt = "a red fox <image:X.PNG>"
    boxed, _ = call("infill", prompt, "--box", "0,8,8,8")
    masked, _ = call("infill", prompt, "--mask", str(tmp_path / "mask.png"))
    first, second = (np.asarray(PIL.Image.open(printed[0])) for printed in (boxed, masked))
    np.testing.assert_array_equal(first, second)
    original = np.asarray(PIL.Image.open(chain / "x.png"))
    np.testing.assert_array_equal(first[mask == 0], original[mask == 0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["draw", "a fox"], "after one of text, caption, infill"),
        (["a fox", "--guidance", "cd:3"], "--guidance 'cd:3' is unknown"),
        (["caption", "X.PNG", "--guidance", "cfg:3"], "not for caption"),
        (["a fox", "--samples", "0"], "--samples must be at least 1"),
        (["a fox", "--top-p", "1.5"], "top_p=1.5"),
        (["a fox", "--box", "0,0,8,8"], "--box or --mask"),
        (["infill", "a fox <image:X.PNG>"], "--box or --mask"),
        (["infill", "a fox <image:X.PNG>", "--box", "0,0,8,99"], "within 16x16"),
        (["infill", "a fox", "--box", "0,0,8,8"], "one <image:PATH>"),
        (["caption", "nowhere.png"], "nowhere.png can't be read"),
        (["a fox", "--docs", "nowhere.png"], "nowhere.png can't be read"),
        (["a fox", "--bank", "nowhere", "--retrieve", "1"], "the memory bank is missing"),
        (["a fox " * 100], "tokens long"),
        (["a fox", "--sample", "2"], "did you mean --samples"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(call, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        call(*words)
    assert not (tmp_path / "out").exists()


def test_an_unwritable_place_is_one_sentence(call, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write to"):
        call("a fox", out=tmp_path / "file" / "out")


def test_the_process_ends_with_code_2(tmp_path):
    words = ["a fox", "--run", str(tmp_path / "nowhere")]
    done = subprocess.run(
        [sys.executable, "-m", "launch.generate", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
