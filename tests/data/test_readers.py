"""Every format of raw data, clean and dirty: nothing is lost, nothing is silent."""

import json
import re
import resource
import tarfile

import numpy as np
import PIL.Image
import pytest

from cm3jax.config import DataConfig
from cm3jax.data.readers.items import BadRecord
from cm3jax.data.readers.lines import Lines
from cm3jax.data.sources import ItemSource, open_source
from cm3jax.errors import UserError
from cm3jax.tokenizers.image import decode_picture
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
        "is no name of a file",
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
        "it has no picture",
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
    assert bad[f"part-0.parquet#{len(made) + 1}"] == "it has no picture"
    assert "not a parquet file" in bad["part-1.parquet"]
    assert len(good) + len(bad) == len(rows) + 1
    assert {record.licence for record in good.values()} == {"MIT"}


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
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                texts = [{"id": j, "text": f"picture {i}, caption {j}"} for j in range(i % 3)]
                yield i, {"image": dirt.jpeg(i), "captions": texts}

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
