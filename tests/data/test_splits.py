"""Which records are for training, for validation and for the bank, in every format."""

import base64
import dataclasses
import json
import tarfile

import pytest

from cm3jax.config import DataConfig
from cm3jax.data.readers.items import BadRecord
from cm3jax.data.sources import open_source
from cm3jax.errors import UserError
from tests.data import dirt

CAPTIONS = 3
"""Captions of each image."""


def _write(folder, pictures, subjects=lambda i: [], field=lambda i: {}):
    """A folder of images with several captions each, the captions in rounds."""
    lines = []
    for caption in range(CAPTIONS):
        for i in range(pictures):
            line = {"file": f"{i % 2}/{i}.jpg", "caption": f"caption {caption} of {i}"}
            lines.append(json.dumps(line | {"subjects": subjects(i)} | field(i)))
    for i in range(pictures):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        (folder / f"{i % 2}/{i}.jpg").write_bytes(dirt.jpeg(i))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def _open(folder, seed=0, **data):
    config = DataConfig(source=str(folder), image_size=16, **data)
    return {split: open_source(config, split, seed) for split in ("train", "validation", "bank")}


def _pictures(source):
    """Numbers of the images, each once, and how many records there are."""
    keys = [source[i].key for i in range(len(source))]
    return sorted({int(key.split("/")[1].split(".")[0]) for key in keys}), len(keys)


def test_pictures_are_held_back_with_all_their_captions(tmp_path):
    splits = _open(_write(tmp_path, 100))
    assert _pictures(splits["validation"]) == ([49, 99], 2 * CAPTIONS)
    train, count = _pictures(splits["train"])
    assert train == [i for i in range(100) if i not in (49, 99)]
    assert count == 98 * CAPTIONS
    assert _pictures(splits["bank"]) == (train, count)


def test_the_last_of_few_pictures_is_held_back(tmp_path):
    splits = _open(_write(tmp_path, 10))
    assert _pictures(splits["validation"]) == ([9], CAPTIONS)
    assert _pictures(splits["train"])[0] == list(range(9))


def test_a_single_picture_is_trained_on(tmp_path):
    splits = _open(_write(tmp_path, 1))
    assert [len(source) for source in splits.values()] == [CAPTIONS, 0, CAPTIONS]


def test_subjects_are_held_back_with_all_that_name_them(tmp_path):
    """Subject 49 is named by two images, one of which also shows subject 3."""

    def subjects(i):
        return ["s3", "s49"] if i == 70 else [f"s{i % 60}"]

    splits = _open(_write(tmp_path, 100, subjects), hold_back="subjects")
    assert _pictures(splits["validation"]) == ([49, 70], 2 * CAPTIONS)
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(UserError, match=r"no record of .*bare names any in `subjects`"):
        _open(_write(bare, 4), hold_back="subjects")


def test_a_record_says_its_split(tmp_path):
    def field(i):
        return {"split": ("val", "bank", "train")[i]} if i < 3 else {}

    splits = _open(_write(tmp_path, 60, field=field))
    assert _pictures(splits["validation"]) == ([0], CAPTIONS)
    assert _pictures(splits["train"])[0] == list(range(2, 60)), "nothing else is held back"
    bank = splits["bank"]
    assert _pictures(bank)[0] == list(range(1, 60))
    held_out = {bank[i].key.split("#")[0] for i in range(len(bank)) if bank[i].held_out}
    assert held_out == {"1/1.jpg"}
    assert not any(splits["train"][i].held_out for i in range(len(splits["train"])))


def test_other_captions_of_a_picture_for_validation_are_for_validation(tmp_path):
    """Where one of its lines says so, and the others nothing, none is trained on."""
    _write(tmp_path, 20)
    path = tmp_path / "captions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[7]["split"] = "validation"  # the first caption of image 7
    lines[20 + 5]["split"] = "train"
    path.write_text("\n".join(map(json.dumps, lines)))
    splits = _open(tmp_path)
    assert _pictures(splits["validation"]) == ([7], CAPTIONS)
    assert _pictures(splits["train"]) == ([i for i in range(20) if i != 7], 19 * CAPTIONS)


def test_an_unknown_split_is_refused_by_name(tmp_path):
    splits = _open(_write(tmp_path, 3, field=lambda i: {"split": "exam"} if i == 0 else {}))
    with pytest.raises(UserError, match="line 1 has the split 'exam', none of train, bank, valid"):
        _ = splits["train"][0]


@pytest.mark.parametrize(
    ("splits", "validation", "bank_only"),
    [
        ([("0", "bank")], [], list(range(0, 60, 2))),
        ([(".", "bank")], [], list(range(60))),
        ([("1/", "validation"), ("0", "bank")], list(range(1, 60, 2)), list(range(0, 60, 2))),
        ([(".", "bank"), ("*/1*.jpg", "validation")], [1, *range(10, 20)], None),
    ],
)
def test_folders_and_patterns_have_splits(tmp_path, splits, validation, bank_only):
    found = _open(_write(tmp_path, 60), splits=tuple(splits))
    if validation:
        assert _pictures(found["validation"])[0] == validation
    bank = found["bank"]
    only = {bank[i].key for i in range(len(bank)) if bank[i].held_out}
    only = sorted({int(key.split("/")[1].split(".")[0]) for key in only})
    assert only == (bank_only or [i for i in range(60) if i not in validation])
    lost = set(range(60)) - {p for source in found.values() for p in _pictures(source)[0]}
    assert not lost


def test_more_records_than_asked_for_are_sampled_and_it_is_said(tmp_path):
    folder = _write(tmp_path, 100)
    splits = _open(folder, records=60)
    assert len(splits["train"]) == len(splits["bank"]) == 60
    assert "a sample of 60 of the 294 records" in splits["train"].note
    keys = [splits["train"][i].key for i in range(60)]
    again = _open(folder, records=60)["train"]
    assert keys == [again[i].key for i in range(60)]
    pictures = _pictures(splits["train"])[0]
    assert max(pictures) > 80, "not only the first ones"
    assert _pictures(_open(folder, 1, records=60)["train"])[0] != pictures
    assert not _open(folder)["train"].note


def test_tar_samples_with_one_picture_stay_together(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(120):
            dirt._add(archive, f"{i}.jpg", dirt.jpeg(i % 60))
            dirt._add(archive, f"{i}.json", json.dumps({"caption": f"{i}"}).encode())
    splits = _open(tmp_path)
    keys = [splits["validation"][i].key for i in range(len(splits["validation"]))]
    assert keys == ["0.tar/49", "0.tar/109"]


def test_parquet_rows_with_one_picture_stay_together(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = []
    for i in range(120):
        (tmp_path / f"{i % 60}.jpg").write_bytes(dirt.jpeg(i % 60))
        split = "bank" if i % 60 == 3 else None
        rows.append({"text": f"{i}", "File_Name": f"{i % 60}.jpg", "split": split})
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    splits = _open(tmp_path)
    keys = [splits["validation"][i].key for i in range(len(splits["validation"]))]
    assert keys == ["0.parquet#50", "0.parquet#110"]
    assert (len(splits["train"]), len(splits["bank"])) == (116, 118)


@pytest.mark.parametrize("kind", ["bytes", "struct", "base64", "list", "spark"])
def test_parquet_rows_with_one_picture_in_them_stay_together(tmp_path, kind):
    """Five captions of an image are five rows with the same bytes, as `explode` writes them."""
    import pyarrow
    from pyarrow import parquet

    def held(i):
        content = dirt.jpeg(i)
        spark = {"height": 2, "width": 2, "nChannels": 3, "data": bytes(range(i, i + 12))}
        return {
            "bytes": content,
            "struct": {"bytes": content, "path": "image.jpg"},
            "base64": base64.b64encode(content).decode(),
            "list": [content],
            "spark": spark,
        }[kind]

    rows = [{"caption": f"{i}", "Image": held(i // 5), "split": None} for i in range(500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet", row_group_size=64)
    splits = _open(tmp_path)
    keys = [splits["validation"][i].key for i in range(len(splits["validation"]))]
    assert keys == [f"0.parquet#{5 * picture + i}" for picture in (49, 99) for i in range(5)]
    assert len(splits["train"]) == 490


def test_a_damaged_row_group_costs_its_rows_only(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"caption": f"{i}", "image": dirt.jpeg(i)} for i in range(60)]
    path = tmp_path / "0.parquet"
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), path, row_group_size=20, compression="NONE"
    )
    found = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = found.dictionary_page_offset or found.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    train = _open(tmp_path)["train"]
    broken = 0
    for i in range(len(train)):
        try:
            train[i]
        except BadRecord:
            broken += 1
    assert (len(train), broken) == (59, 20)


def test_interleaved_documents_are_held_back_by_their_pictures(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.jpg").write_bytes(dirt.jpeg(i))
    lines = [json.dumps([{"text": f"{i}"}, {"image": f"{i}.jpg"}]) for i in range(60)]
    lines.append(json.dumps([{"image": "3.jpg"}, {"image": "49.jpg"}]))
    lines.append(json.dumps([{"text": "no image"}]))
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    validation = _open(tmp_path)["validation"]
    keys = [validation[i].key for i in range(len(validation))]
    assert keys == [f"documents.jsonl line {n}" for n in (4, 50, 61)]


def _named_files(folder, kind: str, names) -> DataConfig:
    """A record in a file of each name, whose caption is the name."""
    import pyarrow
    from pyarrow import parquet

    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            row = {"image": [dirt.jpeg(number)], "text": [name]}
            parquet.write_table(pyarrow.table(row), path)
        elif kind == "tar":
            with tarfile.open(path, "w") as archive:
                dirt._add(archive, "0.jpg", dirt.jpeg(number))
                dirt._add(archive, "0.txt", name.encode())
        else:
            path.write_bytes(dirt.jpeg(number))
            path.with_suffix(".txt").write_text(name)
    return DataConfig(source=str(folder), image_size=16)


def _texts(data: DataConfig, split: str) -> list[str]:
    source = open_source(data, split, 0)
    return [source.texts(i)[0] for i in range(len(source))]


@pytest.mark.parametrize(
    ("kind", "trained", "held"),
    [
        # As the datasets library, Spark and webdataset's users name them.
        (
            "parquet",
            ["data/attest-0.parquet", "data/train-00000-of-00001.parquet"],
            ["data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"],
        ),
        ("parquet", ["split=train/part-0.parquet"], ["split=validation/part-0.parquet"]),
        ("tar", ["train/0.tar"], ["val/0.tar", "val/1.tar"]),
        ("picture", ["train/a/0.png", "train/b/0.png", "train/c.png"], ["test/a/0.png"]),
    ],
)
def test_files_named_for_validation_are_not_trained_on(tmp_path, kind, trained, held):
    data = _named_files(tmp_path, kind, [*trained, *held])
    assert _texts(data, "train") == trained
    assert _texts(data, "validation") == held
    told = dataclasses.replace(data, splits=((held[0].rpartition("/")[0], "bank"),))
    if kind != "parquet":
        assert _texts(told, "bank") == sorted([*trained, *held])


def test_a_source_all_of_whose_files_are_named_for_validation_is_trained_on(tmp_path):
    names = [f"test-0000{i}-of-00002.parquet" for i in range(2)]
    assert len(_texts(_named_files(tmp_path, "parquet", names), "train")) == 1


def test_a_broken_record_does_not_make_all_others_of_such_a_source_validate(tmp_path):
    import pyarrow
    from pyarrow import parquet

    tables, tars, lines = (tmp_path / name for name in ("tables", "tars", "lines"))
    rows = [{"image": dirt.jpeg(i), "text": f"fox {i}", "split": ""} for i in range(3)]
    rows[2]["split"] = "some"
    tables.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tables / "test-00000-of-00001.parquet")
    (tars / "test").mkdir(parents=True)
    (lines / "test").mkdir(parents=True)
    with tarfile.open(tars / "test/0.tar", "w") as archive:
        for i in range(3):
            dirt._add(archive, f"{i}.jpg", dirt.jpeg(i))
            dirt._add(archive, f"{i}.txt", f"fox {i}".encode())
        dirt._add(archive, "2.json", b"[]")
    listed = [json.dumps({"file_name": f"{i}.jpg", "text": f"fox {i}"}) for i in range(2)]
    (lines / "test/metadata.jsonl").write_text("\n".join([*listed, "{"]))
    for folder in (tables, tars, lines):
        splits = {
            split: open_source(DataConfig(source=str(folder), image_size=16), split, 0)
            for split in ("train", "validation")
        }
        assert [len(splits["train"]), len(splits["validation"])] == [2, 1], folder


def test_folders_called_train_and_test_are_no_subjects(tmp_path):
    for name in ("train/1.png", "train/cat/2.png", "test/cat/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(dirt.jpeg(int(name[-5])))
    data = DataConfig(source=str(tmp_path), image_size=16)
    source = open_source(data, "train", 0)
    found = {}
    for i in range(len(source)):
        try:
            record = source[i]
            found[record.key] = (record.segments[0], record.subjects)
        except BadRecord as bad:
            found[bad.key] = bad.reason
    assert found == {
        "train/1.png": "it has no caption: there is no train/1.txt",
        "train/cat/2.png": ("cat", ("cat",)),
    }
    assert open_source(data, "validation", 0)[0].subjects == ("cat",)
    (tmp_path / "test/cat/3.png").unlink()  # images of trains
    assert open_source(data, "validation", 0)[0].subjects == ("cat",)
    assert open_source(data, "train", 0)[0].subjects == ("train",)
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank/4.png").write_bytes(dirt.jpeg(4))
    bank = open_source(data, "bank", 0)
    assert {bank[i].subjects for i in range(len(bank))} >= {("bank",), ("train",)}
