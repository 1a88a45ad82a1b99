import io
import json
import math
import resource
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import DecodeConfig
from cm3jax.errors import UserError
from launch import gallery, generate


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
    assert "s per picture" in printed[-2] or "compiled in" in printed[-2]
    sheet = np.asarray(PIL.Image.open(printed[2]))
    assert sheet.shape == (16, 34, 3), "a contact sheet of two pictures"
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
    assert again[:3] == printed[:3]
    assert "s per picture" in again[-2]
    assert same == log
    _, longer = call("text", "a red fox", *options, *more, "--seed", "5")
    assert longer[:2] == log
    assert len(longer) == 4


def test_documents_are_excluded_and_weighed_by_their_keys(call):
    def shown(*options):
        return call("text", "a red fox", "--retrieve", "2", *options)[1][-1]["documents"]

    first, second = shown()
    assert first["score"] >= second["score"]
    assert {"id", "key", "score", "licence", "source"} == first.keys()
    (kept, other) = shown("--exclude", first["key"])
    assert kept["key"] == second["key"]
    assert first["key"] not in (kept["key"], other["key"])
    weighed = shown("--weigh", f"{second['key']}=1.5")
    assert weighed[0] == second | {"score": pytest.approx(1.5 * second["score"], rel=1e-5)}


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


def test_prompts_come_from_arguments_a_file_or_standard_input(call, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat\n\na fox\n")
    _, log = call("text", "a dog", "--prompts", str(tmp_path / "prompts.txt"))
    assert [line["prompt"] for line in log] == ["a dog", "a cat", "a fox"]
    assert [line["prompt_id"] for line in log] == [0, 1, 2]
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\na cat\n"))
    _, piped = call("--prompts", "-", out=tmp_path / "other")
    assert [line["prompt"] for line in piped] == ["a dog", "a cat"]
    assert [line["ids"] for line in piped] == [line["ids"] for line in log[:2]]


def test_samples_are_ranked_on_request(call):
    printed, log = call("text", "a cat", "a fox", "--samples", "3", "--rerank", "clip")
    assert sorted(line["rank"] for line in log[:3]) == [1, 2, 3]
    best = next(line for line in log if line["prompt"] == "a cat" and line["rank"] == 1)
    assert f"rank 1 of 'a cat': {best['name']}" in printed


def test_a_story_lists_its_texts_and_pictures(call, tmp_path):
    printed, (line,) = call("interleave", "a cat", "--max-document-tokens", "25")
    assert line["segments"]
    for part in line["segments"]:
        if "file" in part:
            picture = np.asarray(PIL.Image.open(tmp_path / "out" / part["file"]))
            assert picture.shape == (16, 16, 3)
        assert (part["text"] if "text" in part else part["file"]) in "\n".join(printed)


def test_an_edit_and_every_kind_of_guidance(call):
    _, (line,) = call("edit", "a red fox <image:X.PNG>", "--guidance", "cfg:5,1.2")
    assert line["decode"]["edit_scales"] == [5, 1.2]
    options = generate.Options(("a fox",), guidance="half:4,0.3", top_k=7, grammar=False)
    config = generate.decode_config(options, DecodeConfig())
    assert (config.contrast, config.contrast_k, config.contrast_alpha) == ("half", 4, 0.3)
    assert (config.top_k, config.grammar) == (7, False)
    config = generate.decode_config(generate.Options(("a",), guidance="cdk:2"), config)
    assert (config.contrast, config.contrast_k, config.contrast_alpha) == ("all", 2, 0.3)


def test_outpainting_keeps_the_picture_and_partial_ones_go_away(call, tmp_path, monkeypatch):
    seen = []
    watch = gallery.Gallery.watch

    def look(self, *arguments):
        watch(self, *arguments)
        seen.extend(path.name for path in (tmp_path / "out").glob("*.partial.png"))

    monkeypatch.setattr(gallery.Gallery, "watch", look)
    printed, _ = call("infill", "a cat <image:X.PNG>", "--outpaint", "0,0,8", "--partial")
    assert np.asarray(PIL.Image.open(printed[0])).shape == (16, 16, 3)
    assert seen
    assert not list((tmp_path / "out").glob("*.partial.png"))


def test_what_is_done_is_kept_when_the_user_stops(call, monkeypatch, tmp_path, capsys):
    add, calls = gallery.Gallery.add, []

    def stop_at_the_second(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(self, *arguments)

    monkeypatch.setattr(gallery.Gallery, "add", stop_at_the_second)
    # Prompts that differ much in length are not decoded together.
    with pytest.raises(KeyboardInterrupt):
        call("text", "a cat", "a red fox " * 6)
    assert "stopped; kept 1" in capsys.readouterr().out
    (line,) = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert PIL.Image.open(tmp_path / "out" / kept["file"]).text["cm3jax"] == line


def test_a_full_disk_is_one_sentence_and_keeps_what_is_there(call, tmp_path):
    """A limit on the size of files stands for the disk; jax's cache, in its way, isn't written."""
    call("a fox")
    compiled = jax.config.jax_persistent_cache_min_compile_time_secs
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(UserError, match=r"can't write to .* choose another --out"):
            call("a cat", "--seed", "3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", compiled)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "after one of text, caption, infill"),
        (["a fox", "--guidance", "cd:3"], "--guidance 'cd:3' is unknown"),
        (["a fox", "--guidance", "cfg:3,4"], "--guidance 'cfg:3,4' is unknown"),
        (["a fox", "--guidance", "cdk:0"], "contrast_k=0 must be at least 1"),
        (["edit", "a fox"], "one <image:PATH>"),
        (["text", "--prompts", "nowhere.txt"], "--prompts nowhere.txt can't be read"),
        (["text", "--prompts", "/dev/null"], "no prompt in it"),
        (["infill", "<image:X.PNG>", "--outpaint", "0,0,16"], "leaves nothing to draw"),
        (["caption", "X.PNG", "--guidance", "cfg:3"], "not for caption"),
        (["a fox", "--samples", "0"], "--samples must be at least 1"),
        (["a fox", "--top-p", "1.5"], "top_p=1.5"),
        (["a fox", "--box", "0,0,8,8"], "one of --box, --mask"),
        (["infill", "a fox <image:X.PNG>"], "one of --box, --mask"),
        (["infill", "a fox <image:X.PNG>", "--box", "0,0,8,99"], "within 16x16"),
        (["infill", "a fox", "--box", "0,0,8,8"], "one <image:PATH>"),
        (["caption", "nowhere.png"], "nowhere.png can't be read"),
        (["a fox", "--docs", "nowhere.png"], "nowhere.png can't be read"),
        (["a fox", "--bank", "nowhere", "--retrieve", "1"], "the memory bank is missing"),
        (["a fox", "--retrieve", "1", "--exclude", "nobody"], "has no document 'nobody'"),
        (["a fox", "--retrieve", "1", "--weigh", "nobody"], "'nobody' is no KEY=FACTOR"),
        (["a fox", "--exclude", "tiny-1"], "choose among documents that --retrieve finds"),
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
