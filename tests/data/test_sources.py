import dataclasses
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from cm3jax.config import DataConfig
from cm3jax.data.readers.items import BadRecord, RefusedByRule
from cm3jax.data.sources import MaskedSource, open_source
from cm3jax.emblems import builder, example
from cm3jax.emblems.palette import BACKGROUNDS
from cm3jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Sixty images, number i of colour (i, 0, 0)."""
    lines = []
    for i in range(60):
        Image.new("RGB", (40, 50), (i, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append({"file": f"{i}.png", "caption": f"picture {i}"})
    lines[3] |= {"licence": "CC0-1.0", "source": "a camera"}
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


def test_emblems_are_prepared_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "bank_size", lambda training: 60)
    data = DataConfig(records=120, emblems=90, raw=str(tmp_path))
    for split, count in (("train", 120), ("validation", 200), ("bank", 60)):
        source = open_source(data, split, 5)
        assert len(source) == count
        for index in range(0, count, 7):
            record, document = source[index], example(split, index, 5, training=90)
            assert len(record.segments) == len(document.segments)
            for read, made in zip(record.segments, document.segments, strict=True):
                np.testing.assert_array_equal(read, made)
            assert (record.key, record.kind) == (document.key, document.kind)
            assert record.subjects == document.emblems
            assert (record.source, record.licence) == (document.source, document.licence)
            pictures = [part for part in document.segments if not isinstance(part, str)]
            masks = source.masks(index)
            assert len(masks) == len(pictures)
            for mask, picture, scene in zip(masks, pictures, document.scenes, strict=False):
                background = (picture == BACKGROUNDS[scene.background]).all(-1)
                np.testing.assert_array_equal(mask, np.where(background, 0, 255))


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"licences": ("CC0-1.0",)}, "is not among data.licences"),
        ({"max_words": 8}, "words, more than data.max_words=8"),
        ({"min_side": 33}, "32x32 pixels, a side below data.min_side=33"),
    ],
)
def test_rules_leave_generated_records_out(tmp_path, monkeypatch, rules, reason):
    monkeypatch.setattr(builder, "bank_size", lambda training: 20)
    data = DataConfig(records=30, emblems=90, raw=str(tmp_path))
    every = open_source(data, "train", 5)
    ruled = open_source(dataclasses.replace(data, **rules), "train", 5)
    refused = 0
    for index in range(30):
        record = every[index]
        words = sum(len(text.split()) for text in every.texts(index))
        pictures = any(not isinstance(part, str) for part in record.segments)
        fits = {
            "licences": record.licence == "CC0-1.0",
            "max_words": words <= 8,
            "min_side": not pictures,
        }[next(iter(rules))]
        if fits:
            assert (ruled[index].key, ruled.texts(index)) == (record.key, every.texts(index))
            continue
        refused += 1
        for read in (ruled.__getitem__, ruled.texts):
            with pytest.raises(RefusedByRule, match=re.escape(reason)):
                read(index)
    assert refused > 0


@pytest.mark.parametrize(
    "name", ["captions.jsonl", "documents.jsonl", "a.tar", "b/x.parquet", "c/metadata.jsonl"]
)
@pytest.mark.parametrize("what", ["pipe", "link"])
def test_a_pipe_or_a_broken_link_is_neither_waited_for_nor_passed_over(tmp_path, name, what):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path) if what == "pipe" else path.symlink_to(tmp_path / "nowhere")
    reason = {"pipe": "it is a pipe, not a file", "link": "No such file or directory"}[what]
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} can't be read \({reason}\)"):
        open_source(DataConfig(source=str(tmp_path)), "train", 0)


def test_a_folder_may_be_called_like_an_archive(tmp_path):
    names = ("a.tar", "b.parquet", "metadata.jsonl")
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    source = open_source(DataConfig(source=str(tmp_path), splits=((".", "train"),)), "train", 0)
    assert [source[i].subjects for i in range(3)] == [
        ("a.tar",),
        ("b.parquet",),
        ("metadata.jsonl",),
    ]


def test_names_that_are_no_unicode_are_refused_by_record(tmp_path):
    for name in (b"a", b"\xff"):
        Image.new("RGB", (8, 8)).save(tmp_path / "new.png")
        os.rename(tmp_path / "new.png", os.path.join(os.fsencode(tmp_path), name + b".png"))
        (tmp_path / "new.txt").write_text("a fox")
        os.rename(tmp_path / "new.txt", os.path.join(os.fsencode(tmp_path), name + b".txt"))
    data = DataConfig(source=str(tmp_path), splits=((".", "train"),))
    good, bad = (lambda index=index: open_source(data, "train", 0)[index] for index in (0, 1))
    assert good().key == "a.png"
    with pytest.raises(
        BadRecord, match=r"^\\udcff\.png: its name '\\\\udcff\.png' is not UTF-8"
    ) as e:
        bad()
    assert str(e.value).encode()  # it can be printed
    lines = [{"file": "a.png", "caption": "b", "subjects": ["\ud800"]}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(data, "train", 0)
    with pytest.raises(BadRecord, match="is not UTF-8"):
        source[0]
    with pytest.raises(BadRecord, match="is not UTF-8"):
        source.texts(0)


@pytest.mark.parametrize(
    "values",
    [
        *({"records": 0}, {"records": -5}, {"image_size": 0}, {"emblems": 0}),
        *({"min_side": -1}, {"min_words": -1}, {"max_words": -1}, {"max_aspect": 0.5}),
        *({"max_unsafe": float("nan")}, {"max_watermark": -0.1}, {"max_aspect": float("nan")}),
    ],
)
def test_impossible_numbers_are_refused(values):
    with pytest.raises(UserError, match=rf"data\.{next(iter(values))}=.* must (be|not) "):
        DataConfig(**values)


def test_masks_of_a_folder(folder):
    half = np.zeros((50, 40), np.uint8)
    half[:, 20:] = 255
    Image.fromarray(half).save(folder / "mask.png")
    lines = (folder / "captions.jsonl").read_text().splitlines()
    for number, file in ((1, "mask.png"), (2, "no.png"), (3, float("nan"))):
        lines[number] = json.dumps(json.loads(lines[number]) | {"mask": file})
    (folder / "captions.jsonl").write_text("\n".join(lines))
    source = open_source(DataConfig(source=str(folder), image_size=16), "train", 0)
    assert isinstance(source, MaskedSource)
    (none,), (mask,) = source.masks(0), source.masks(1)
    assert not none.any()
    assert not source.masks(3)[0].any(), "tables have NaN for nothing"
    assert none.shape == mask.shape == (16, 16)
    assert (mask[:, :7] < 10).all()
    assert (mask[:, 9:] > 245).all()
    with pytest.raises(UserError, match=r"line 3: .*no\.png"):
        source.masks(2)


def test_a_folder_of_pictures(folder):
    data = DataConfig(source=str(folder), image_size=16)
    source = open_source(data, "train", 0)
    assert len(source) == 59
    record = source[3]
    assert record.segments[0] == "picture 3"
    np.testing.assert_array_equal(record.segments[1], np.full((16, 16, 3), (3, 0, 0), np.uint8))
    assert (record.source, record.licence, record.kind) == ("a camera", "CC0-1.0", "pair")
    assert source[0].licence == "unknown"
    assert source[0].source == str(folder)


def test_validation_lines_are_held_back(folder):
    data = DataConfig(source=str(folder))
    held_back = open_source(data, "validation", 0)
    assert [held_back[i].key for i in range(len(held_back))] == ["49.png"]
    for split in ("train", "bank"):
        assert "49.png" not in {record.key for record in open_source(data, split, 0)}
    few = DataConfig(source=str(folder), records=5)
    assert len(open_source(few, "train", 0)) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "no.png", "caption": "x"}', "captions.jsonl line 2: .*no.png"),
        ('{"file": "broken.png", "caption": "x"}', "captions.jsonl line 2: .*broken.png"),
        ('{"file": "0.png"}', "line 2 has no text in 'caption'"),
        ('{"file": "0.png", "caption": ""}', "line 2 has no text in 'caption'"),
        ('["0.png"]', "line 2 is not a JSON object"),
        ("{file}", "line 2 is not JSON"),
    ],
)
def test_a_bad_line_or_picture_is_named(folder, line, message):
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    good = '{"file": "0.png", "caption": "x"}'
    (folder / "captions.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    config = DataConfig(source=str(folder), splits=((".", "train"),))
    with pytest.raises(UserError, match=message):
        list(open_source(config, "train", 0))


@pytest.mark.parametrize("content", [None, ""])
def test_a_folder_without_captions_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"captions\.jsonl"):
        open_source(DataConfig(source=str(tmp_path)), "train", 0)


def test_unknown_splits_are_refused(folder):
    with pytest.raises(ValueError, match="no split"):
        open_source(DataConfig(source=str(folder)), "test", 0)
