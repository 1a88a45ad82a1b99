import collections
import dataclasses
import io
import json
import math
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath

from cm3jax import testing
from cm3jax.config import DecodeConfig
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.generation.prompts import load_mask
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import remove
from launch import contact, env, gallery, generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    testing.write_chain(directory)
    PIL.Image.fromarray(testing.pictures(1, seed=3)[0]).save(directory / "x.png")
    (directory / "x.txt").write_text("a red fox\n")
    PIL.Image.new("L", (16, 16)).save(directory / "dark.png")
    return directory


@pytest.fixture
def call(chain, tmp_path, capsys):
    """Run the command; its printed lines, and the lines of `samples.jsonl`."""

    def run(*words, out=tmp_path / "out"):
        words = [word.replace("X.PNG", str(chain / "x.png")) for word in words]
        words = [word.replace("DARK.PNG", str(chain / "dark.png")) for word in words]
        generate.command([*words, "--run", str(chain / "decoder"), "--out", str(out)])
        log = (out / "samples.jsonl").read_text().splitlines()
        return capsys.readouterr().out.splitlines(), [json.loads(line) for line in log]

    return run


def test_pictures_carry_their_recipe_and_are_listed(call):
    options = ("--samples", "2", "--retrieve", "1", "--docs", "X.PNG", "--guidance", "cfg:3")
    more = ("--temperature-range", "0.5", "1.5", "--top-p", "0.9", "--seed", "4")
    printed, log = call("text", "a red fox", *options, *more)
    assert printed[-1].startswith("wrote 2 to ")
    assert re.match(r"2 samples in \d+\.\d s \(\S+ s each\)", printed[-2])
    assert printed[-3].endswith("contact.png")
    key, score = log[0]["documents"][1]["key"], log[0]["documents"][1]["score"]
    assert printed.pop(0) == f"documents for 'a red fox': {key} ({score:.2f})"
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
    assert again[1:4] == printed[:3]
    assert "s each" in again[-2]
    assert same == log
    _, longer = call("text", "a red fox", *options, *more, "--seed", "5")
    assert longer[:2] == log
    assert len(longer) == 4


@pytest.mark.slow  # a drawing under a profiler
def test_a_prompt_passes_the_files_that_the_map_names(call):
    """`ARCHITECTURE.md`, "Life of a prompt": its diagram is the way, its text names the rest.

    The way is straight: one or two files of a layer call into the next, none calls back.
    """
    folders = ("launch/g", "launch/contact", "cm3jax/generation/", "cm3jax/decode/")
    entered = collections.defaultdict(set)

    def place(frame):
        while frame:
            path = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
            if frame.f_code.co_name == "<module>":
                return None
            if path.startswith(folders):
                return path.removeprefix("cm3jax/")
            frame = frame.f_back

    def note(frame, event, _):
        path = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        if event == "call" and path.startswith(folders):
            entered[place(frame)].add(place(frame.f_back))

    sys.setprofile(note)
    try:
        call("text", "a red fox", "--samples", "2", "--retrieve", "1", "--docs", "X.PNG")
    finally:
        sys.setprofile(None)
    life = (ROOT / "ARCHITECTURE.md").read_text().partition("## Life of a prompt")[2]
    _, way, text = life.partition("\n## ")[0].split("```")
    drawn = set(re.findall(r"(?:launch|generation|decode)/\w+\.py", way))
    passed = entered.keys() - {None}
    assert drawn <= passed
    assert not [path for path in passed - drawn if path.rpartition("/")[2] not in text]
    layers = ["launch", "generation", "decode"]
    for path in passed:
        folder = path.partition("/")[0]
        doors = {caller for caller in entered[path] - {None} if not caller.startswith(folder)}
        assert len(doors) <= 2, (path, doors)
        depth = layers.index(folder)
        assert all(layers.index(door.partition("/")[0]) < depth for door in doors), (path, doors)


def test_damaged_lines_of_the_log_stay_and_stop_nothing(chain, tmp_path):
    log = tmp_path / "out" / "samples.jsonl"
    old = [b'{"name": "mine", "x": 1}', b"\xff\xfe", b'["a"]', b"[" * 100_000, b'{"name": "to']
    old += [b'{"name": ["a"]}', b'{"name": {}}', b'{"name": null}']
    log.parent.mkdir()
    log.write_bytes(b"\n".join(old))
    options = ["text", "a red fox", "--run", str(chain / "decoder"), "--out", str(log.parent)]
    for _ in range(2):
        generate.command(options)
        *kept, new = log.read_bytes().splitlines()
        assert sorted(kept) == sorted(old)
        assert json.loads(new)["prompt"] == "a red fox"


def test_a_pipe_in_the_place_of_the_log_raises_user_error_before_anything_is_drawn(chain, tmp_path):
    os.mkfifo(tmp_path / "samples.jsonl")
    with pytest.raises(UserError, match=r"samples\.jsonl would be a log, but it is a pipe"):
        generate.command(["text", "x", "--run", str(chain / "decoder"), "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == ["samples.jsonl"]


def test_a_picture_of_somebody_else_is_not_written_over(chain, tmp_path):
    (tmp_path / "contact.png").write_text("mine")
    options = ["text", "a red fox", "--run", str(chain / "decoder"), "--out", str(tmp_path)]
    with pytest.raises(UserError, match=r"contact.png is not of this program .* another --out"):
        generate.command(options)
    assert [path.name for path in tmp_path.iterdir()] == ["contact.png"]
    assert (tmp_path / "contact.png").read_text() == "mine"


def test_documents_are_excluded_and_weighed_by_their_keys(call):
    def shown(*options):
        return call("text", "a red fox", "--retrieve", "2", *options)[1][-1]["documents"]

    first, second = shown()
    assert first["score"] >= second["score"]
    assert {"id", "key", "score", "licence", "source", "mark"} == first.keys()
    (kept, other) = shown("--exclude", first["key"])
    assert kept["key"] == second["key"]
    assert first["key"] not in (kept["key"], other["key"])
    weighed = shown("--weigh", f"{second['key']}=1.5")
    assert weighed[0] == second | {"score": pytest.approx(1.5 * second["score"], rel=1e-5)}


def test_documents_by_hand_bring_the_caption_from_the_file_beside_them(call):
    printed, _ = call("a cat", "--docs", "X.PNG", "--show-sequence")
    assert printed[0].startswith("<eos> 'a red fox' <break> I")
    assert "<break> 'a cat' <break> I" in printed[0]


def test_captions_are_printed_and_listed(call):
    call("<mask> <image:X.PNG> <infill>")
    printed, log = call("caption", "X.PNG")
    by_notation, alone = log
    assert "\n".join(printed).startswith(f"{alone['prompt']}: {alone['text'].strip()}")
    assert alone["prompt"].endswith("x.png")
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


@pytest.mark.parametrize("paint", [(255, 255, 255), (0, 0, 0), (200, 0, 30)])
def test_what_a_brush_painted_on_a_transparent_layer_is_drawn(paint, tmp_path):
    layer = np.zeros((16, 16, 4), np.uint8)
    layer[8:, :8] = (*paint, 255)
    PIL.Image.fromarray(layer).save(tmp_path / "brush.png")
    painted = np.zeros((16, 16), bool)
    painted[8:, :8] = True
    np.testing.assert_array_equal(load_mask(tmp_path / "brush.png", 16), painted)


def test_a_mask_without_transparent_parts_marks_by_its_light(tmp_path):
    for mode, light, dark in (("RGBA", (255,) * 4, (0, 0, 0, 255)), ("L", 255, 0), ("1", 1, 0)):
        image = PIL.Image.new(mode, (16, 16), dark)
        image.paste(light, (0, 0, 4, 16))
        image.save(tmp_path / "mask.png")
        assert load_mask(tmp_path / "mask.png", 16).sum(0).tolist() == [16] * 4 + [0] * 12


def test_the_speed_is_said_however_short_the_call():
    assert generate.speed(Meter(), 1, 0.5) == "1 sample in 0.5 s (0.5 s each)"
    first = generate.speed(Meter(compile_seconds=2.0), 4, 3.0)
    assert first == "4 samples in 3.0 s (0.75 s each), 2.0 s of them compiling"
    slow = Meter(decode_seconds=10.0, decode_tokens=640, decode_bytes=10)
    assert "64 new tokens/s" in generate.speed(slow, 1, 11.0)
    assert "0% of the copy rate" in generate.speed(slow, 1, 11.0)
    cached = dataclasses.replace(slow, decode_bytes=10**18)
    line = generate.speed(cached, 1, 11.0)
    assert "%" not in line
    assert "from the cache" in line
    guessed = generate.speed(Meter(passes=24, emitted=64), 4, 3.0)
    assert guessed.endswith(", 2.67 new tokens in a pass, 6 passes for a sample")
    assert "pass" not in generate.speed(Meter(passes=64, emitted=64), 4, 3.0)


def test_rows_of_the_contact_sheet_are_prompts_with_their_documents(call, tmp_path):
    """Two prompts, two samples each: two rows of four cells, documents on a ground of their own."""
    printed, log = call("text", "a cat", "a fox", "--samples", "2", "--retrieve", "1")
    said = [line for line in printed if line.startswith("documents for ")]
    keys = [log[0]["documents"][0]["key"], log[2]["documents"][0]["key"]]
    assert [key in line for key, line in zip(keys, said, strict=True)] == [True, True]
    page = np.asarray(PIL.Image.open(next(p for p in printed if p.endswith("contact.png"))))
    ground = (page == contact._DOCUMENTS).all(-1)
    rows = np.flatnonzero(np.diff(ground.any(1).astype(int)) == 1)
    assert len(rows) == 2
    columns = np.flatnonzero(ground.any(0))
    for row, pair in zip(rows, (log[:2], log[2:]), strict=True):
        for place, line in enumerate(pair):
            picture = PIL.Image.open(tmp_path / "out" / line["file"])
            large = np.asarray(picture.resize((112, 112), PIL.Image.Resampling.NEAREST))
            x = columns.max() + 4 + place * 120
            np.testing.assert_array_equal(page[row + 5 : row + 117, x : x + 112], large)


def test_a_sheet_of_a_document_that_was_taken_out_meanwhile_goes(
    call, chain, tmp_path, monkeypatch
):
    shutil.copytree(chain / "bank", tmp_path / "bank")
    draw = contact.sheet

    def removed_first(rows):
        bank = Bank.open(tmp_path / "bank")
        remove(bank, Removed(keys=tuple(bank.rows)[1:]))
        return draw(rows)

    monkeypatch.setattr(contact, "sheet", removed_first)
    words = ("text", "a cat", "--samples", "2", "--retrieve", "1", "--floor", "-1")
    printed, log = call(*words, "--bank", str(tmp_path / "bank"), "--exclude", "tiny-0")
    sheet, names = tmp_path / "out" / "contact.png", ", ".join(line["name"] for line in log)
    assert not sheet.exists()
    assert f"{tmp_path / 'out'}: drawn with them, and kept: {names}" in printed
    assert any(line.startswith(f"{sheet}: deleted, since it showed them") for line in printed)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_documents_below_the_floor_are_left_out_and_that_is_said(call):
    printed, (line,) = call("text", "a cat", "--retrieve", "2", "--floor", "2")
    assert line["documents"] == []
    assert re.match(
        r"0 of 2 documents for 'a cat'; scores below the floor of 2 were left out: \S+, \S+$",
        printed[0],
    )
    printed, (_, line) = call("text", "a cat", "--retrieve", "2", "--floor", "-1")
    assert len(line["documents"]) == 2
    assert printed[0].startswith("documents for 'a cat': ")


def test_lines_that_nobody_can_read_stay_and_block_nothing(chain, call, tmp_path):
    _, (line,) = call("a cat")
    log = tmp_path / "out" / "samples.jsonl"
    bad = b'{"name": "half\xff\n[1, 2\n'
    log.write_bytes(log.read_bytes() + bad)
    again = ["a cat", "--run", str(chain / "decoder"), "--out", str(tmp_path / "out")]
    generate.command(again)
    assert log.read_bytes() == bad + json.dumps(line, ensure_ascii=False).encode() + b"\n"


def test_a_prompts_file_of_another_kind_is_read_or_refused(call, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa caf\u00e9\u2028in the sun\r\na cat\r\n".encode())
    _, log = call("text", "--prompts", str(path))
    asked = {line["prompt_id"]: line["prompt"] for line in log}
    assert asked == {0: "a caf\u00e9\u2028in the sun", 1: "a cat"}
    path.write_bytes(b"a caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        call("text", "--prompts", str(path))
    with pytest.raises(UserError, match="holds more than 64 MiB"):
        call("text", "--prompts", "/dev/zero")


def test_prompts_come_from_arguments_a_file_or_standard_input(call, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat\n\na fox\n")
    _, log = call("text", "a dog", "--prompts", str(tmp_path / "prompts.txt"))
    assert [line["prompt"] for line in log] == ["a dog", "a cat", "a fox"]
    assert [line["prompt_id"] for line in log] == [0, 1, 2]
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\na cat\n"))
    _, piped = call("--prompts", "-", out=tmp_path / "other")
    assert [line["prompt"] for line in piped] == ["a dog", "a cat"]
    assert [line["ids"] for line in piped] == [line["ids"] for line in log[:2]]


@pytest.mark.slow  # `generation/test_ranking.py` ranks them
def test_samples_are_ranked_on_request(call):
    printed, log = call("text", "a cat", "a fox", "--samples", "3", "--rerank", "clip")
    assert sorted(line["rank"] for line in log[:3]) == [1, 2, 3]
    best = next(line for line in log if line["prompt"] == "a cat" and line["rank"] == 1)
    assert f"rank 1 of 'a cat': {best['name']} (CLIP cosine {best['rank_score']:.3f})" in printed
    cats = sorted(log[:3], key=lambda line: line["rank"])
    assert [line["rank_score"] for line in cats] == sorted(
        (line["rank_score"] for line in cats), reverse=True
    )
    printed, log = call("caption", "X.PNG", "--samples", "2", "--rerank", "perplexity")
    first, second = sorted(log[-2:], key=lambda line: line["rank"])
    assert first["rank_score"] == pytest.approx(first["perplexity"])
    assert first["rank_score"] <= second["rank_score"]


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
    config = generate.as_sampling(options, DecodeConfig()).decode
    assert (config.contrast, config.contrast_k, config.contrast_alpha) == ("half", 4, 0.3)
    assert (config.top_k, config.grammar) == (7, False)
    config = generate.as_sampling(generate.Options(("a",), guidance="cdk:2"), config).decode
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


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_drawn(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is not a folder; give a folder for the samples"):
        gallery.Gallery(epath.Path(tmp_path / "out"), None, {}, [], []).begin()
    assert (tmp_path / "out").read_text() == "mine"


def test_previews_that_a_killed_call_left_go_with_the_next(chain, tmp_path):
    """Those and no other images, whatever their names are."""
    out = tmp_path / "out"
    out.mkdir()
    picture = np.zeros((4, 4, 3), np.uint8)
    ours, mine = out / "a-fox-0-1.partial.png", out / "a-fox-0-2.partial.png"
    ours.write_bytes(gallery._with_recipe(picture, gallery._UNFINISHED))
    PIL.Image.fromarray(picture).save(mine)
    os.mkfifo(out / "a-fox-0-3.partial.png")
    gallery.Gallery(epath.Path(out), None, {}, [], []).begin()
    assert sorted(path.name for path in out.iterdir()) == [mine.name, "a-fox-0-3.partial.png"]


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


def test_a_full_disk_raises_user_error_and_keeps_what_is_there(call, tmp_path):
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
        (["text", "--prompts", "."], "--prompts . can't be read"),
        (["text", "--prompts", "/dev/null"], "no prompt in it"),
        (["infill", "<image:X.PNG>", "--outpaint", "0,0,16"], "leaves nothing to draw"),
        (["caption", "X.PNG", "--guidance", "cfg:3"], "not for caption"),
        (["a fox", "--samples", "0"], "--samples must be at least 1"),
        (["a fox", "--samples", "9" * 12], "--samples must be at least 1 and at most 100,000"),
        (["text"], "give a prompt, in quotes, after text"),
        (["caption"], "give a prompt, in quotes, after caption"),
        (["a fox", "--seed", "-1"], "--seed -1 must be from 0"),
        (["a fox", "--seed", "9" * 12], "must be from 0 to 4294967295"),
        (["a fox", "--temperature", "nan"], "temperature=nan must be"),
        (["a fox", "--temperature", "inf"], "temperature=inf must be"),
        (["a fox", "--temperature", "-1"], "temperature=-1.0 must be"),
        (["a fox", "--temperature", "1e-30"], "temperature=1e-30 must be"),
        (["a fox", "--temperature-range", "nan", "1"], "temperature_range=nan 1.0 must be"),
        (["a fox", "--top-p", "nan"], "top_p=nan"),
        (["a fox", "--top-p", "0"], "top_p=0.0"),
        (["a fox", "--top-k", "-1"], "top_k=-1"),
        (["a fox", "--top-k", "9" * 12], "top_k=999999999999"),
        (["a fox", "--guidance", "cfg:nan"], "guidance_scale=nan must be from 0"),
        (["a fox", "--guidance", "cfg:1e300"], "guidance_scale=1e.300 must be from 0"),
        (["a fox", "--guidance", "cdk:inf"], "--guidance 'cdk:inf' is unknown"),
        (["a fox", "--guidance", "cdk:2.5"], "--guidance 'cdk:2.5' is unknown"),
        (["a fox", "--guidance", "cdk:4,nan"], "contrast_alpha=nan in"),
        (["a fox", "--guidance", f"cdk:{'9' * 12}"], "contrast_k=999999999999 must be"),
        (["edit", "a fox <image:X.PNG>", "--guidance", "cfg:nan,1"], "edit_scales=nan must be"),
        (["interleave", "a fox", "--max-document-tokens", "-5"], "max_document_tokens 0 or at"),
        (["a fox", "--retrieve", "9" * 9], "more than the model's context could hold"),
        (["a fox", "--retrieve", "-1"], "--retrieve must be at least 0"),
        (["a fox", "--retrieve", "1", "--floor", "nan"], "--floor nan is no score"),
        (["a fox", "--retrieve", "1", "--weigh", "tiny-1=1e39"], "is no KEY=FACTOR"),
        (["infill", "a fox <image:X.PNG>", "--box", "-4,0,8,8"], "no part of the image"),
        (["infill", "a fox <image:X.PNG>", "--box", "99,99,8,8"], "no part of the image"),
        (["infill", "a fox <image:X.PNG>", "--box", "0,0,0,8"], "no part of the image"),
        (["infill", "a fox <image:X.PNG>", "--outpaint", "0,0,-4"], "leaves nothing to draw"),
        (["infill", "a fox <image:X.PNG>", "--mask", "DARK.PNG"], "the mask covers no pixel"),
        (["caption", "X.PNG", "--rerank", "clip"], "for captions give --rerank perplexity"),
        (["a fox", "--top-p", "1.5"], "top_p=1.5"),
        (["a fox", "--box", "0,0,8,8"], "write infill before the prompt"),
        (["infill", "a fox <image:X.PNG>"], "needs one of --box, --mask"),
        (["infill", "a fox <image:X.PNG>", "--box", "0,0,8,99"], "within 16x16"),
        (["infill", "a fox", "--box", "0,0,8,8"], "one <image:PATH>"),
        (["caption", "nowhere.png"], "nowhere.png can't be read"),
        (["caption", " "], "a prompt is empty; give the path"),
        (["a fox", "--docs", "nowhere.png"], "nowhere.png can't be read"),
        (["a fox", "--bank", "nowhere", "--retrieve", "1"], "the memory bank is missing"),
        (["a fox", "--retrieve", "1", "--exclude", "nobody"], "has no document 'nobody'"),
        (["a fox", "--retrieve", "1", "--weigh", "nobody"], "'nobody' is no KEY=FACTOR"),
        (["a fox", "--exclude", "tiny-1"], "choose among documents that --retrieve finds"),
        (["a fox " * 100], "tokens long .* room for 0; show"),
        (["a fox", "--sample", "2"], "did you mean --samples"),
        (["captoin", "X.PNG"], "there is no 'captoin' .did you mean caption"),
        (["X.PNG"], "is a file, not a text; write caption"),
        (["text", "a fox", "X.PNG"], "is a file, not a text"),
    ],
)
def test_bad_input_raises_user_error_and_writes_nothing(call, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        call(*words)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_called_as_a_mode_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "text").touch()
    monkeypatch.chdir(tmp_path)
    assert generate.Options(("text", "a fox")).asked() == ["a fox"]


def test_an_unwritable_place_raises_user_error(call, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        call("a fox", out=tmp_path / "file" / "out")


def test_the_command_ends_with_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(env, "prepare", lambda: None)  # it is for processes of their own
    monkeypatch.setattr(sys, "argv", ["generate", "a fox", "--run", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        env.main(generate.command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "nowhere" in said
    assert said.count("\n") == 1


@pytest.mark.slow  # `generation/test_attribution.py` has the values
def test_attribution_says_what_each_document_did(call, tmp_path):
    options = ("--retrieve", "1", "--floor", "-1", "--docs", "X.PNG", "--attribute")
    printed, (line,) = call("text", "a red fox", *options)
    told = [words for words in printed if words.startswith("  document ")]
    assert len(told) == 2
    for number, (document, words) in enumerate(zip(line["documents"], told, strict=True)):
        assert document["gain"] == pytest.approx(sum(document["gains"]), abs=1e-3)
        assert f"{document['gain']:+.1f} nats" in words
        assert 0 <= document["copied"] <= 1
        with PIL.Image.open(tmp_path / "out" / f"{line['name']}-document-{number}.png") as heat:
            assert heat.size == (16, 16)
