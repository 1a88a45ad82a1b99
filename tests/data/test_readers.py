"""Every format of raw data, clean and dirty: nothing is lost, nothing is silent."""

import base64
import contextlib
import dataclasses
import decimal
import gzip
import io
import json
import os
import re
import resource
import tarfile

import numpy as np
import PIL.Image
import pytest

from cm3jax.config import DataConfig
from cm3jax.data.readers.items import BadRecord, RefusedByRule
from cm3jax.data.readers.lines import Lines
from cm3jax.data.sources import ItemSource, open_source
from cm3jax.errors import UserError
from cm3jax.tokenizers.image_tokenizer import decode_picture
from tests.data import dirt

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")


def read_all(source):
    """The records that come through, and the others' reasons, by key."""
    good, bad = {}, {}
    for index in range(len(source)):
        try:
            record = source[index]
            good[record.key] = record
        except BadRecord as error:
            bad[error.key] = error.reason
    assert len(good) + len(bad) == len(source), "two records share a key"
    return good, bad


def both_splits(path, **data):
    config = DataConfig(source=str(path), image_size=16, **data)
    splits = [read_all(open_source(config, split, 0)) for split in ("train", "validation")]
    good, bad = ({**a, **b} for a, b in zip(*splits, strict=True))
    return good, bad


def check(good, bad, made, stem):
    """Each made sample is where it belongs, with its reason and its content."""
    for name, picture, caption in made:
        kind = name.rpartition("-")[0]
        key = stem(name)
        if kind in dirt.GOOD:
            text, pixels = good[key].segments
            assert text == caption
            np.testing.assert_array_equal(pixels, decode_picture(picture, 16).pixels)
        else:
            assert re.search(dirt.BROKEN[kind][2], bad[key]), (kind, bad[key])


def test_a_dirty_folder(tmp_path):
    made = dirt.samples(good=30, broken=36)
    path = dirt.folder(tmp_path / "folder", made)
    before = {entry.name for entry in tmp_path.iterdir()}
    good, bad = both_splits(path)
    check(good, bad, made, lambda name: f"{name}.jpg")
    assert len(good) == 30
    assert len(bad) == 36 + dirt.FOLDER_LINES
    reasons = "\n".join(bad.values())
    for said in (
        "is not JSON",
        "is not a JSON object",
        "is not UTF-8",
        "has no text in 'file'",
        "missing.jpg: it can't be read",
        "'../outside.jpg' leads out of the folder",
        "'/etc/hostname' leads out of the folder",
        "is not a file name",
        "half a surrogate pair",
    ):
        assert said in reasons
    assert bad["plain-0.jpg#2"].startswith(f"captions.jsonl line {66 + 9}")
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_dirty_tar_shards(tmp_path):
    made = dirt.samples(good=20, broken=18)
    path = dirt.tars(tmp_path / "tars", made)
    before = sorted(tmp_path.rglob("*"))
    good, bad = both_splits(path)
    shard = {name: i % 2 for i, (name, _, _) in enumerate(made)}
    check(good, bad, made, lambda name: f"{shard[name]:05d}.tar/{name}")
    assert len(good) == 20
    assert len(bad) == 18 + dirt.TAR_SAMPLES + 1  # of the cut archive, its caption and its end
    reasons = "\n".join(bad.values())
    for said in (
        "'../../outside.jpg' leads out of the folder",
        "'/tmp-outside/x.jpg' leads out of the folder",
        "'a/../../y.jpg' leads out of the folder",
        "it is a link or device",
        "it has no image",
        "is not JSON",
        "cut off where the archive ends",
        "the archive can't be read further",
    ):
        assert said in reasons, said
    licences = {record.licence for record in good.values()}
    assert licences == {"CC0-1.0", "unknown"}
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written anywhere"


def test_an_archive_with_a_damaged_header_says_where(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(4):
            dirt._add(archive, f"{i}.jpg", dirt.jpeg(i))
            dirt._add(archive, f"{i}.txt", b"a fox")
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        second = archive.getmember("2.jpg").offset
    content[second : second + 100] = b"\xff" * 100
    path.write_bytes(content)
    good, bad = both_splits(tmp_path)
    assert list(good) == ["0.tar/0", "0.tar/1"]
    assert list(bad.values()) == [f"the archive is damaged at byte {second}; what follows is lost"]


def test_a_key_that_comes_again_is_another_record(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(3):
            dirt._add(archive, "x.jpg", dirt.jpeg(i))
            dirt._add(archive, "x.txt", f"fox {i}".encode())
    good, bad = both_splits(tmp_path)
    assert list(good) == ["0.tar/x", "0.tar/x#2", "0.tar/x#3"]
    assert not bad


def test_parquet_tables(tmp_path):
    import pyarrow
    from pyarrow import parquet

    made = dirt.samples(good=15, broken=18)
    (tmp_path / "images").mkdir()
    rows = []
    for i, (name, picture, caption) in enumerate(made):
        row = {"TEXT": caption, "jpg": None, "image": None, "file": None, "license": "MIT"}
        if i % 3 == 0:
            row["jpg"] = picture
        elif i % 3 == 1:
            row["image"] = {"bytes": picture, "path": None}
        else:
            (tmp_path / "images" / f"{name}.jpg").write_bytes(picture)
            row["file"] = f"images/{name}.jpg"
        rows.append(row)
    rows.append(rows[0] | {"jpg": None, "image": None, "file": "../../outside.jpg", "TEXT": "x"})
    rows.append(rows[0] | {"jpg": None, "image": None, "file": None, "TEXT": "x"})
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "part-0.parquet", row_group_size=7)
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 is all there is")
    good, bad = both_splits(tmp_path)
    number = {name: i for i, (name, _, _) in enumerate(made)}
    check(good, bad, made, lambda name: f"part-0.parquet#{number[name]}")
    assert bad[f"part-0.parquet#{len(made)}"].endswith("leads out of the folder")
    assert bad[f"part-0.parquet#{len(made) + 1}"] == "it has no image"
    assert "not a parquet file" in bad["part-1.parquet"]
    assert len(good) + len(bad) == len(rows) + 1
    assert {record.licence for record in good.values()} == {"MIT"}


def test_a_table_of_paths_that_is_damaged_costs_the_rows_that_are(tmp_path):
    """Also where a source is looked at for changes, which reads every row."""
    import pyarrow
    from pyarrow import parquet

    names = [f"{i}.png" for i in range(6)]
    for place, name in enumerate(names):
        PIL.Image.new("RGB", (16, 16), (place, 0, 0)).save(tmp_path / name)
    table = pyarrow.table({"caption": ["a cat"] * 6, "file_name": names})
    path = tmp_path / "0.parquet"
    parquet.write_table(table, path, row_group_size=3, use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 30 + content[34:])
    good, bad = both_splits(tmp_path)
    assert [*good] == [f"0.parquet#{i}" for i in (3, 4, 5)]
    assert all("the row can't be read" in reason for reason in bad.values())
    source = open_source(DataConfig(source=str(tmp_path), image_size=16), "train", 0)
    assert len({made.state for made in source.made(range(len(source)))}) > 1


def test_a_map_of_captions_gives_its_values(tmp_path):
    import pyarrow

    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    captions = pyarrow.array([[("en", "a fox"), ("de", "ein Fuchs")]], kind)
    record = one_row(tmp_path, caption=captions, image=[dirt.jpeg(0)])
    assert record.segments[0] == "a fox"


def one_row(folder, /, **columns):
    """The record of a parquet file with one row, or why there is none."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "0.parquet")
    source = open_source(DataConfig(source=str(folder), image_size=16), "train", 0)
    try:
        return source[0]
    except BadRecord as bad:
        return bad.reason


def encoded(kind, side=16):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(
        buffer, kind
    )
    return buffer.getvalue()


def test_pictures_in_the_columns_that_others_write(tmp_path):
    png = encoded("PNG")
    wanted = decode_picture(png, 16).pixels
    text = base64.b64encode(png).decode()
    red_last = wanted[..., ::-1].tobytes()
    spark = {"origin": "x", "height": 16, "width": 16, "nChannels": 3, "mode": 16, "data": red_last}
    for columns in (
        {"png": [png]},
        {"PNG": [png]},
        {"image": [text]},
        {"image": [f"data:image/png;base64,{text}"]},
        {"image": [{"bytes": png, "path": "gone.png"}]},
        {"images": [[{"bytes": png, "path": None}]]},
        {"path": ["file:/gone.png"], "content": [png]},
        {"image": [spark]},
        {"image": [text.encode()]},
        {"image": [text.replace("+", "-").replace("/", "_").rstrip("=")]},
        {"image": [list(png)]},
        {"image": [png], "IMAGE": [None]},
        {"Image": [None], "image": [png]},
    ):
        record = one_row(tmp_path, caption=["a cat"], **columns)
        np.testing.assert_array_equal(record.segments[1], wanted)
    for kind in ("JPEG", "WEBP"):
        content = encoded(kind, 500)
        for value in (content, base64.b64encode(content).decode()):
            record = one_row(tmp_path, caption=["a cat"], image=[value])
            np.testing.assert_array_equal(record.segments[1], decode_picture(content, 16).pixels)
    assert len(one_row(tmp_path, caption=["a cat"], image=["x" * 10_000_000])) < 400


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        (b"a cat\n", "a cat"),
        ([["a cat", "one cat"]], "a cat"),
        ([[None, "a cat"]], "a cat"),
        (b"caf\xe9", "its caption is not UTF-8"),
        (None, "it has no caption"),
        (float("nan"), "it has no caption"),
        ([], "it has no caption"),
    ],
)
def test_captions_of_every_type(tmp_path, caption, wanted):
    column = caption if isinstance(caption, list) and caption else [caption]
    found = one_row(tmp_path, caption=column, png=[encoded("PNG")])
    assert found.startswith(wanted) if isinstance(found, str) else found.segments[0] == wanted


def test_captions_are_found_in_whatever_field_has_one(tmp_path):
    picture, fields = dirt.jpeg(0), {}
    fields["null"] = {"caption": None, "text": "one"}
    fields["blank"] = {"caption": " ", "captions": ["", "two"]}
    fields["texts"] = {"texts": [None, "three"]}
    tar, lines = tmp_path / "tars", tmp_path / "lines"
    tar.mkdir()
    lines.mkdir()
    with tarfile.open(tar / "0.tar", "w") as archive:
        for name, row in fields.items():
            dirt._add(archive, f"{name}.jpg", picture)
            dirt._add(archive, f"{name}.json", json.dumps(row).encode())
        dirt._add(archive, "empty.jpg", picture)
        dirt._add(archive, "empty.txt", b"\n")
        dirt._add(archive, "empty.json", b'{"caption": "four"}')
        dirt._add(archive, "unread.heic", picture)
        dirt._add(archive, "unread.txt", b"five")
    rows = [json.dumps({"file": f"{name}.jpg"} | row) for name, row in fields.items()]
    (lines / "captions.jsonl").write_text("\n".join(rows))
    for name in fields:
        (lines / f"{name}.jpg").write_bytes(picture)
    good, bad = both_splits(tar)
    assert [record.segments[0] for record in good.values()] == ["one", "two", "three", "four"]
    assert bad == {"0.tar/unread": "it has no image that is read, only .heic, .txt"}
    good, bad = both_splits(lines)
    assert [record.segments[0] for record in good.values()] == ["one", "two", "three"]
    assert not bad


@pytest.mark.parametrize(
    ("value", "licence"),
    [
        (None, "unknown"),
        ("", "unknown"),
        (float("nan"), "unknown"),
        (float("inf"), "inf"),
        (3, "3"),
        (3.0, "3"),
        (decimal.Decimal("3"), "3"),
        (b"MIT", "MIT"),
        (["MIT"], "has no text in 'licence'"),
    ],
)
def test_licences_of_every_type(tmp_path, value, licence):
    found = one_row(tmp_path, caption=["a cat"], png=[encoded("PNG")], license=[value])
    assert found == licence if isinstance(found, str) else found.licence == licence


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (decimal.Decimal("0.9"), "above 0.5"),
        ("0.9", "above 0.5"),
        (float("nan"), "nan is not a number"),
        (None, "None is not a number"),
        ("perhaps", "'perhaps' is not a number"),
        (decimal.Decimal("0.4"), ""),
        ("0.4", ""),
        (0, ""),
    ],
)
def test_a_number_that_cannot_be_read_passes_no_rule(tmp_path, value, said):
    import pyarrow
    from pyarrow import parquet

    columns = {"caption": ["a cat"], "png": [encoded("PNG")], "pwatermark": [value]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "0.parquet")
    good, bad = both_splits(tmp_path, max_watermark=0.5)
    assert (len(good), len(bad)) == ((0, 1) if said else (1, 0))
    assert said in "".join(bad.values())
    assert len(both_splits(tmp_path)[0]) == 1, "without a rule nothing is refused"


@pytest.mark.parametrize("name", ["0.tar", "0.parquet", "captions.jsonl"])
def test_a_file_that_is_written_again_is_another_one(tmp_path, name):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.png").write_bytes(encoded("PNG"))

    def write(caption):
        if name == "0.tar":
            with tarfile.open(tmp_path / name, "w") as archive:
                dirt._add(archive, "a.txt", caption.encode())
                dirt._add(archive, "a.jpg", dirt.jpeg(0))
        elif name == "0.parquet":
            columns = {"caption": [caption], "png": [encoded("PNG")]}
            parquet.write_table(pyarrow.table(columns), tmp_path / name)
        else:
            (tmp_path / name).write_text(json.dumps({"file": "a.png", "caption": caption}))

    data = DataConfig(source=str(tmp_path), image_size=16)
    for caption in ("old", "new", "a much longer caption"):
        write(caption)
        source = open_source(data, "train", 0)
        assert source[0].segments[0] == caption
    write("once more, while a source is open")
    with pytest.raises(UserError, match="was changed while it was read"):
        source[0]


def test_members_that_are_no_samples_part_none(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(2):
            for name in (f"{i}.jpg", f"{i}.txt"):
                dirt._add(archive, f"._{name}", b"resource fork")
                dirt._add(archive, f"__MACOSX/{name}", b"resource fork")
                dirt._add(archive, name, dirt.jpeg(i) if name.endswith("jpg") else b"a fox\n")
                dirt._add(archive, f".thumbnails/{name}", dirt.jpeg(9))
                dirt._add(archive, "README", b"between a picture and its caption")
        dirt._add(archive, ".DS_Store", b"x")
        dirt._add(archive, "__index__", b"x")
    good, bad = both_splits(tmp_path)
    assert {key: record.segments[0] for key, record in good.items()} == {
        "0.tar/0": "a fox",
        "0.tar/1": "a fox",
    }
    assert not bad


def test_texts_are_read_without_their_pictures(tmp_path):
    made = dirt.samples(good=10, broken=12)
    config = DataConfig(source=str(dirt.folder(tmp_path / "x", made)), image_size=16)
    source = open_source(config, "train", 0)
    for file in (tmp_path / "x").glob("*.jpg"):
        file.write_bytes(b"no picture")
    texts = []
    for index in range(len(source)):
        with contextlib.suppress(BadRecord):
            texts += source.texts(index)
    sound = {kind: caption for kind, (_, caption) in dirt.GOOD.items()}
    assert {text for text in texts if text in sound.values()} == set(sound.values())
    strict = open_source(dataclasses.replace(config, min_side=8), "train", 0)
    with pytest.raises(BadRecord, match="not an image"):
        strict.texts(0)
    strict = open_source(dataclasses.replace(config, min_words=99), "train", 0)
    first = next(i for i, (name, _, _) in enumerate(made) if name.startswith("hebrew"))
    with pytest.raises(RefusedByRule, match="fewer than"):
        strict.texts(first)


def test_pipes_devices_and_links_out_cost_one_record_each(tmp_path):
    (tmp_path / "outside.png").write_bytes(encoded("PNG"))
    path = tmp_path / "x"
    path.mkdir()
    os.mkfifo(path / "pipe.png")
    (path / "zero.png").symlink_to("/dev/zero")
    (path / "out.png").symlink_to(tmp_path / "outside.png")
    (path / "sound.png").write_bytes(encoded("PNG"))
    (path / "alias.png").symlink_to("sound.png")
    names = [file.name for file in sorted(path.iterdir())]
    lines = [json.dumps({"file": name, "caption": "x"}) for name in names]
    (path / "captions.jsonl").write_text("\n".join([*lines, json.dumps({"file": "y" * 10**7})]))
    good, bad = both_splits(path)
    assert set(good) == {"sound.png", "alias.png"}
    assert "it is a pipe, not a file" in bad["pipe.png"]
    assert "is a link out of the folder" in bad["zero.png"]
    assert "is a link out of the folder" in bad["out.png"]
    assert max(len(key) + len(reason) for key, reason in bad.items()) < 400


def test_interleaved_documents(tmp_path):
    (tmp_path / "a.jpg").write_bytes(dirt.jpeg(0))
    (tmp_path / "b.jpg").write_bytes(dirt.jpeg(1))
    story = [{"text": "first"}, {"image": "a.jpg"}, {"text": "then"}, {"image": "b.jpg"}]
    lines = [
        json.dumps(story),
        json.dumps({"items": story[:1], "licence": "MIT", "source": "a book"}),
        json.dumps([{"image": "../a.jpg"}]),
        json.dumps([{"sound": "a.wav"}]),
        json.dumps({"text": "no items"}),
        json.dumps([]),
    ]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    for source in (tmp_path, tmp_path / "documents.jsonl"):
        good, bad = both_splits(source)
        first, second = good.values()
        assert [type(s) is str for s in first.segments] == [True, False, True, False]
        assert first.kind == "interleaved"
        assert (second.segments, second.licence, second.source) == (("first",), "MIT", "a book")
        assert [reason.split(",")[0][:25] for reason in bad.values()] == [
            "its file name '../a.jpg' ",
            "has the item {'sound': 'a",
            "is neither a list of item",
            "it is empty",
        ]


def test_a_dataset_of_tfds_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "coco_captions"
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
            features = {"image": tfds.features.Image(), "captions": captions}
            features["label"] = tfds.features.ClassLabel(names=["dog", "cat"])
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                texts = [{"id": j, "text": f"picture {i}, caption {j}"} for j in range(i % 3)]
                yield i, {"image": dirt.jpeg(i), "captions": texts, "label": i % 2}

    builder = CocoCaptions(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    data = DataConfig(source="tfds:coco_captions:1.1.0", raw=str(tmp_path), image_size=16)
    good, bad = read_all(open_source(data, "train", 0))
    assert list(bad.values()) == ["it has no caption"] * 2
    for record in good.values():
        text, pixels = record.segments
        number = int(text.split()[1].rstrip(","))
        assert text == f"picture {number}, caption 0"
        np.testing.assert_array_equal(pixels, decode_picture(dirt.jpeg(number), 16).pixels)
        assert record.source == "tfds:coco_captions:1.1.0"
    with pytest.raises(UserError, match=r"the dataset nowhere:1\.0\.0, split train, can't be read"):
        open_source(DataConfig(source="tfds:nowhere:1.0.0", raw=str(tmp_path)), "train", 0)


def _laion(folder):
    """A dataset of TFDS with LAION's columns."""
    import tensorflow_datasets as tfds

    class Laion(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "laion"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
            features["nsfw"] = tfds.features.ClassLabel(names=["UNLIKELY", "NSFW", "UNTAGGED"])
            features["pwatermark"] = tfds.features.Scalar(np.float32)
            features["subjects"] = tfds.features.Sequence(tfds.features.Text())
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                row = {"nsfw": i % 3, "pwatermark": i / 10, "subjects": [f"fox {i % 2}"]}
                yield i, {"image": dirt.jpeg(i), "caption": f"fox {i}", **row}

    Laion(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return DataConfig(source="tfds:laion:1.0.0", raw=str(folder), image_size=16)


def test_rules_and_subjects_of_a_dataset_of_tfds(tmp_path):
    data = _laion(tmp_path)
    safe = dataclasses.replace(data, max_unsafe=0.5, splits=(("*", "train"),))
    good, bad = read_all(open_source(safe, "train", 0))
    assert {record.segments[0] for record in good.values()} == {"fox 0", "fox 3"}
    assert sorted(bad.values()) == [
        *["its nsfw 'UNTAGGED' is not a number"] * 2,
        *["its unsafe score 1 is above 0.5"] * 2,
    ]
    clear = dataclasses.replace(data, max_watermark=0.25, splits=(("*", "train"),))
    good, bad = read_all(open_source(clear, "train", 0))
    assert {record.segments[0] for record in good.values()} == {"fox 0", "fox 1", "fox 2"}
    parted = dataclasses.replace(data, hold_back="subjects")
    held = read_all(open_source(parted, "validation", 0))[0].values()
    assert len({record.subjects for record in held}) == 1
    assert len(held) == 3


def test_splits_part_all_records(tmp_path):
    made = [(f"{i}", dirt.jpeg(i), f"fox {i}") for i in range(120)]
    config = DataConfig(source=str(dirt.folder(tmp_path / "x", made)), image_size=16)
    train, held_back = (open_source(config, split, 0) for split in ("train", "validation"))
    assert isinstance(train, ItemSource)
    assert len(train) + len(held_back) == 120 + dirt.FOLDER_LINES
    assert held_back[0].key == "49.jpg"
    assert held_back[1].key == "99.jpg"
    keys = read_all(train)[0].keys()
    assert len(keys) == 118
    assert not keys & {"49.jpg", "99.jpg"}
    with pytest.raises(IndexError):
        train[len(train)]


@pytest.mark.parametrize(
    ("rule", "kept", "said"),
    [
        ({"licences": ("CC0-1.0", "MIT")}, {"free", "wide", "short"}, "'unknown' is not among"),
        ({"min_side": 20}, {"free", "plain", "short", "marked"}, "40x10 pixels, a side below"),
        (
            {"max_aspect": 2.0},
            {"free", "plain", "short", "marked"},
            "longer than data.max_aspect=2",
        ),
        ({"min_words": 2}, {"free", "plain", "wide", "marked"}, "1 words, fewer than"),
        ({"max_words": 3}, {"free", "plain", "wide", "short"}, "4 words, more than"),
        (
            {"max_watermark": 0.5},
            {"free", "plain", "wide", "short"},
            "watermark score 0.9 is above",
        ),
        ({"max_unsafe": 0.6}, {"plain", "wide", "short", "marked"}, "unsafe score 1 is above 0.6"),
    ],
)
def test_quality_rules_refuse_and_say_why(tmp_path, rule, kept, said):
    lines = {
        "free": {"caption": "a red fox", "licence": "MIT", "NSFW": "NSFW"},
        "plain": {"caption": "a red fox", "punsafe": 0.6},
        "wide": {"caption": "a red fox", "licence": "MIT"},
        "short": {"caption": "fox", "licence": "CC0-1.0"},
        "marked": {"caption": "a big red fox", "pwatermark": 0.9},
    }
    for name in lines:
        size = (40, 10) if name == "wide" else (30, 20)
        PIL.Image.new("RGB", size).save(tmp_path / f"{name}.png")
    text = "\n".join(json.dumps({"file": f"{name}.png"} | line) for name, line in lines.items())
    (tmp_path / "captions.jsonl").write_text(text)
    good, bad = both_splits(tmp_path, **rule)
    assert {key.removesuffix(".png") for key in good} == kept
    assert said in "\n".join(bad.values())


def test_long_files_are_read_by_line(tmp_path):
    lines = [f"line {i}" * (i % 5 + 1) for i in range(500)]
    (tmp_path / "x").write_text("\n".join(lines))
    from etils import epath

    read = Lines(epath.Path(tmp_path / "x"))
    assert [read[i].decode().rstrip("\n") for i in (499, 0, 64, 63, 200)] == [
        lines[i] for i in (499, 0, 64, 63, 200)
    ]


@pytest.mark.slow
def test_thousands_of_broken_files_cost_no_memory(tmp_path):
    made = dirt.samples(good=500, broken=2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good, bad = both_splits(dirt.folder(tmp_path / "folder", made))
    check(good, bad, made, lambda name: f"{name}.jpg")
    assert (len(good), len(bad)) == (500, 2000 + dirt.FOLDER_LINES)
    good, bad = both_splits(dirt.tars(tmp_path / "tars", made, shards=3))
    assert (len(good), len(bad)) == (500, 2000 + dirt.TAR_SAMPLES + 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder", "tars"}


def test_records_say_what_they_are_about(tmp_path):
    """Every format takes a list of names or one name; anything else there is refused."""
    import pyarrow
    from pyarrow import parquet

    given = [["france", " flag "], "france", None, []]
    wanted = [("france", "flag"), ("france",), (), ()]
    folders = {name: tmp_path / name for name in ("lines", "hf", "tars", "documents", "tables")}
    for folder in folders.values():
        folder.mkdir()
    rows = [{"subjects": names} if names is not None else {} for names in given]
    for i in range(5):
        for name in ("lines", "hf", "documents"):
            (folders[name] / f"{i}.jpg").write_bytes(dirt.jpeg(i))
    bad = {"subjects": [1]}

    def write(folder, file, lines):
        (folders[folder] / file).write_text("\n".join(map(json.dumps, lines)))

    picture = [{"file": f"{i}.jpg", "caption": "x"} | row for i, row in enumerate([*rows, bad])]
    write("lines", "captions.jsonl", picture)
    hf = [{"file_name": f"{i}.jpg", "text": "x"} | row for i, row in enumerate([*rows, bad])]
    write("hf", "metadata.jsonl", hf)
    items = [{"text": "x"}, {"image": "0.jpg"}]
    write("documents", "documents.jsonl", [{"items": items} | row for row in [*rows, bad]])
    with tarfile.open(folders["tars"] / "0.tar", "w") as archive:
        for i, row in enumerate([*rows, bad]):
            dirt._add(archive, f"{i}.jpg", dirt.jpeg(i))
            dirt._add(archive, f"{i}.json", json.dumps({"caption": "x"} | row).encode())
    table = [
        {"caption": "x", "jpg": dirt.jpeg(i), "subjects": list(names)}
        for i, names in enumerate(wanted)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(table), folders["tables"] / "0.parquet")
    for name, folder in folders.items():
        good, refused = both_splits(folder)
        assert [record.subjects for record in good.values()] == wanted, name
        if name != "tables":
            (reason,) = refused.values()
            assert "no list of names in 'subjects'" in reason


@pytest.mark.parametrize(
    ("subjects", "split", "wanted"),
    [
        (float("nan"), float("nan"), ()),
        ("", "", ()),
        ([None, " ", "fox"], None, ("fox",)),
        ([b"fox", b"owl"], b"train", ("fox", "owl")),
        (b"fox", " Train ", ("fox",)),
    ],
)
def test_what_tables_have_for_nothing_is_no_subject_and_no_split(tmp_path, subjects, split, wanted):
    import pyarrow
    from pyarrow import parquet

    row = {"text": "a fox", "png": encoded("PNG"), "subjects": subjects, "split": split}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "0.parquet")
    good, bad = both_splits(tmp_path)
    assert not bad
    assert [record.subjects for record in good.values()] == [wanted]


def test_empty_lines_at_the_end_are_no_records(tmp_path):
    (tmp_path / "0.jpg").write_bytes(dirt.jpeg(0))
    line = b'{"file": "0.jpg", "caption": "a fox"}'
    (tmp_path / "captions.jsonl").write_bytes(line + b"\r\n\r\n" + line + b"\r\n \n\n")
    good, bad = both_splits(tmp_path)
    assert list(good) == ["0.jpg", "0.jpg#2"]
    assert list(bad) == ["captions.jsonl line 2"]


def test_names_that_are_too_long_for_a_manifest_are_refused(tmp_path):
    (tmp_path / "0.jpg").write_bytes(dirt.jpeg(0))
    row = {"file": "0.jpg", "caption": "a fox"}
    rows = [row | {name: "x" * 2000} for name in ("licence", "source", "subjects")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, [row, *rows])))
    good, bad = both_splits(tmp_path)
    assert list(good) == ["0.jpg"]
    assert len(bad) == 3
    assert all("has 2000 characters, more than 1024" in reason for reason in bad.values())


def test_a_folder_of_pictures_named_by_subject(tmp_path):
    def put(name, text=None):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(dirt.jpeg(0))
        if text is not None:
            (tmp_path / name).with_suffix(".txt").write_bytes(text)

    put("france_flag/1.png")
    put("france_flag/2.JPG", b"\xef\xbb\xbfa flag in the wind\r\n")
    put("00000/1.png", b"from a shard")
    put("00000/2.png")
    put("alone.png", "schön".encode("latin-1"))
    (tmp_path / "notes.txt").write_text("no caption of any image")
    for hidden in (".thumbnails/1.png", "__MACOSX/1.png", "france_flag/._1.png"):
        put(hidden, b"a thing that another program put here")
    good, bad = both_splits(tmp_path)
    assert {key: (r.segments[0], r.subjects) for key, r in good.items()} == {
        "france_flag/1.png": ("france flag", ("france flag",)),
        "france_flag/2.JPG": ("a flag in the wind", ("france flag",)),
        "00000/1.png": ("from a shard", ()),
    }
    assert bad == {
        "00000/2.png": "it has no caption: there is no 00000/2.txt",
        "alone.png": "alone.txt: is not UTF-8 (byte F6 at 3)",
    }


def test_a_folder_in_which_nothing_has_a_caption_gives_pictures(tmp_path):
    for i, kind in enumerate(("jpg", "jfif", "HEIC", "svg")):
        content = dirt.jpeg(i) if kind[0] == "j" else b"<svg xmlns='http://www.w3.org/2000/svg'/>"
        (tmp_path / f"{i}.{kind}").write_bytes(content)
    (tmp_path / "4.avif").write_bytes(encoded("AVIF"))
    good, bad = both_splits(tmp_path)
    assert {key: len(record.segments) for key, record in good.items()} == {
        "0.jpg": 1,
        "1.jfif": 1,
        "4.avif": 1,
    }
    assert bad.keys() == {"2.HEIC", "3.svg"}
    assert all("not an image that can be read" in reason for reason in bad.values())


def test_folders_of_the_datasets_library_with_a_metadata_file_in_each(tmp_path):
    """Both splits number their images from 0; an image of training is never one of another."""
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for i in range(3):
            (tmp_path / split / f"{i}.jpg").write_bytes(dirt.jpeg(i))
        rows = [{"file_name": f"{i}.jpg", "text": f"{split} {i}"} for i in (0, 1, 2, 0)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / split / "metadata.jsonl").write_text(lines)
    for split in ("train", "validation"):
        config = DataConfig(source=str(tmp_path), image_size=16)
        good, bad = read_all(open_source(config, split, 0))
        assert not bad
        assert {key: record.segments[0] for key, record in good.items()} == {
            f"{split}/0.jpg": f"{split} 0",
            f"{split}/1.jpg": f"{split} 1",
            f"{split}/2.jpg": f"{split} 2",
            f"{split}/0.jpg#2": f"{split} 0",
        }


def test_pictures_outside_of_the_listed_folders_are_not_passed_over(tmp_path):
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").write_bytes(dirt.jpeg(0))
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "0.jpg", "text": "a fox"}\n')
    with pytest.raises(UserError, match=r"1 images, test/0\.jpg the first, that are in no"):
        open_source(DataConfig(source=str(tmp_path), image_size=16), "train", 0)


@pytest.mark.parametrize("name", ["0.tar.gz", "train/0.tgz"])
def test_compressed_archives_are_not_passed_over(tmp_path, name):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        dirt._add(archive, "0.jpg", dirt.jpeg(0))
        dirt._add(archive, "0.txt", b"a fox")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    with pytest.raises(UserError, match=f"has {name}, a compressed archive"):
        both_splits(tmp_path)
    (tmp_path / name).rename(tmp_path / "1.tar")
    good, bad = both_splits(tmp_path)
    assert list(good) == ["0.tar/0"]
    assert bad == {"1.tar": "the archive is compressed; decompress it"}


@pytest.mark.parametrize("kind", ["pictures", "tars", "lists"])
def test_the_name_of_a_source_may_have_brackets(tmp_path, kind):
    folder = tmp_path / "photos [2019]*"
    (folder / "a").mkdir(parents=True)
    if kind == "tars":
        with tarfile.open(folder / "a/0.tar", "w") as archive:
            dirt._add(archive, "0.jpg", dirt.jpeg(0))
            dirt._add(archive, "0.txt", b"a")
    else:
        (folder / "a/0.jpg").write_bytes(dirt.jpeg(0))
    if kind == "lists":
        (folder / "a/metadata.jsonl").write_text('{"file_name": "0.jpg", "text": "a"}')
    good, bad = both_splits(folder)
    assert [record.segments[0] for record in good.values()] == ["a"]
    assert not bad


def test_what_pictures_were_unpacked_from_may_stay_beside_them(tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=r"has images\.tar\.gz, a compressed archive"):
        both_splits(tmp_path)
    (tmp_path / "0.jpg").write_bytes(dirt.jpeg(0))
    assert list(both_splits(tmp_path)[0]) == ["0.jpg"]


@pytest.mark.parametrize(
    ("name", "content"), [("0.caption", "a fox"), ("0.jpg.txt", "a"), ("0.json", '{"text": "a"}')]
)
def test_captions_under_names_that_are_not_read_are_not_passed_over(tmp_path, name, content):
    (tmp_path / "0.jpg").write_bytes(dirt.jpeg(0))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"has a caption in {name}, which is not read"):
        both_splits(tmp_path)
    (tmp_path / "0.txt").write_text("a fox")
    assert [record.segments[0] for record in both_splits(tmp_path)[0].values()] == ["a fox"]


def test_captions_that_are_not_read_are_not_passed_over_for_the_folder_s_name(tmp_path):
    """Trainers of adapters want `10_fox/0.png` with `10_fox/0.caption`."""
    folder = tmp_path / "10_fox"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(dirt.jpeg(0))
    (folder / "0.json").write_text('{"text": "of another program"}')
    assert [record.segments[0] for record in both_splits(tmp_path)[0].values()] == ["10 fox"]
    (folder / "0.caption").write_text("a fox in snow")
    with pytest.raises(UserError, match=r"has a caption in 10_fox/0\.caption, which is not read"):
        both_splits(tmp_path)


def test_captions_in_upper_case_are_read_and_notes_of_other_programs_are_none(tmp_path):
    (tmp_path / "0.JPG").write_bytes(dirt.jpeg(0))
    (tmp_path / "0.json").write_text('{"shapes": []}')
    (tmp_path / "notes.caption").write_text("of no image")
    (bare,) = both_splits(tmp_path)[0].values()
    assert len(bare.segments) == 1
    (tmp_path / "0.TXT").write_text("a fox")
    source = open_source(DataConfig(source=str(tmp_path), image_size=16), "train", 0)
    before = source.made(range(1))
    assert source[0].segments[0] == "a fox"
    (tmp_path / "0.TXT").write_text("another fox")
    assert source.made(range(1)) != before
    (tmp_path / "0.txt").write_text("the fox")
    assert [record.segments[0] for record in both_splits(tmp_path)[0].values()] == ["the fox"]


def test_captions_name_their_picture_in_any_of_the_usual_fields(tmp_path):
    fields = ("file", "file_name", "image", "image_path", "filename", "path")
    rows = []
    for place, field in enumerate(fields):
        (tmp_path / f"{place}.jpg").write_bytes(dirt.jpeg(place))
        rows.append({field: f"{place}.jpg", "caption": field})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = both_splits(tmp_path)
    assert sorted(record.segments[0] for record in good.values()) == sorted(fields)
    assert not bad


def test_a_table_beside_pictures_with_captions_of_their_own_stops_nothing(tmp_path):
    for name in ("classes.csv", "samples.jsonl"):
        (tmp_path / name).write_text("0,fox\n")
    (tmp_path / "0.jpg").write_bytes(dirt.jpeg(0))
    with pytest.raises(UserError, match=r"has captions in classes\.csv, which is not read"):
        both_splits(tmp_path)
    (tmp_path / "0.txt").write_text("a fox")
    good, bad = both_splits(tmp_path)
    assert [record.segments[0] for record in good.values()] == ["a fox"]
    assert not bad


@pytest.mark.parametrize(
    "name",
    ["metadata.csv", "train/metadata.csv", "captions.txt", "results.csv", "x.token", "train.jsonl"],
)
def test_captions_in_a_table_are_not_passed_over(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("file_name,text\n0.jpg,a fox\n")
    (tmp_path / name).with_name("0.jpg").write_bytes(dirt.jpeg(0))
    with pytest.raises(UserError, match=f"has captions in {name}, which is not read"):
        open_source(DataConfig(source=str(tmp_path), image_size=16), "train", 0)


def test_a_picture_under_two_spellings_of_its_name_is_one_picture(tmp_path):
    (tmp_path / "0.jpg").write_bytes(dirt.jpeg(0))
    rows = [{"file": name, "caption": name} for name in ("0.jpg", "./0.jpg", "x/../0.jpg")]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = both_splits(tmp_path)
    assert list(good) == ["0.jpg", "0.jpg#2", "0.jpg#3"]
    assert not bad


def test_a_source_with_nothing_to_read_or_none_at_all_is_refused(tmp_path):
    for path, said in ((tmp_path, "has nothing that is read"), (tmp_path / "x", "does not exist")):
        with pytest.raises(UserError, match=f"{re.escape(str(path))} {said}"):
            open_source(DataConfig(source=str(path), image_size=16), "train", 0)
