import json

import numpy as np
import PIL.Image
import pytest

from cm3jax.config import DataConfig
from cm3jax.data.sources import RawRecord
from cm3jax.errors import UserError
from cm3jax.evaluate.heldout_records import HeldOut, Judged, drawn_rows, held_out
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.tokenizers.image_tokenizer import load_picture


def write(folder, lines):
    """An image per file name, of the colour of its number."""
    for number, name in enumerate(dict.fromkeys(line["file"] for line in lines)):
        PIL.Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / name)
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(source=str(folder), image_size=8)


def line(name, caption, split="validation", **more):
    return {"file": name, "caption": caption, "split": split, **more}


def test_one_caption_per_picture_counts_and_broken_records_do_not(tmp_path):
    lines = [line(f"{n}.png", f"picture {n}, said {m}") for n in range(6) for m in range(5)]
    data = write(tmp_path, [*lines, line("seen.png", "seen", "train"), line("bad.png", "bad")])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    said = []
    found = held_out(data, 0, 100, said.append)
    assert sorted(record.text[:9] for record in found) == [f"picture {n}" for n in range(6)]
    assert len(said) == 1
    assert "left out 1 of 31 records: bad.png" in said[0]
    for record in found:
        number = int(record.text[8])
        assert (record.picture == load_picture(tmp_path / f"{number}.png", 8)).all()
    some = held_out(data, 0, 3, said.append)
    assert [r.text for r in some] == [r.text for r in found[:3]]
    others = [held_out(data, 0, 3, said.append, choice) for choice in range(5)]
    assert len({tuple(r.text for r in drawn) for drawn in others}) > 1


def test_nothing_held_back_raises_user_error(tmp_path):
    data = write(tmp_path, [line("a.png", "a", "train"), line("b.png", "b", "bank")])
    with pytest.raises(UserError, match="holds back no record with a text and an image"):
        held_out(data, 0, 10)


def test_pictures_without_a_text_raise_user_error(tmp_path):
    for number in range(40):
        PIL.Image.new("RGB", (8, 8), (number * 5, 0, 0)).save(tmp_path / f"{number}.png")
    data = DataConfig(source=str(tmp_path), image_size=8)
    with pytest.raises(UserError, match="holds back no record with a text and an image"):
        held_out(data, 0, 10)


def record(key, subjects, picture):
    return HeldOut(key, picture, RawRecord(key, (key, picture), "pair", subjects, "test", ""))


def bank(tmp_path, documents):
    ids = np.zeros(3, np.int32)
    rows = [
        BankDocument(f"d{n}", ids, text, True, image, "t", "CC0-1.0", subjects, pictures=pictures)
        for n, (text, image, subjects, pictures) in enumerate(documents)
    ]
    vectors = np.eye(len(rows), 8, dtype=np.float32)
    return Bank.build(tmp_path / "bank", rows, vectors, "encoder", "vocab")


def test_right_documents_share_a_subject_and_show_another_picture(tmp_path):
    picture = np.full((8, 8, 3), 7, np.uint8)
    fox = record("a fox", ("fox",), picture)
    (own,) = fox.raw.pictures
    made = bank(
        tmp_path,
        [
            ("the same fox", True, ("fox",), (own,)),
            ("another fox", True, ("fox", "snow"), ("ab" * 8,)),
            ("a fox in words", False, ("fox",), ()),
            ("a cat", True, ("cat",), ("cd" * 8,)),
        ],
    )
    judged = Judged.of([fox], made, "subjects")
    assert judged.own == [[0]]
    assert judged.right[0].tolist() == [1]
    assert judged.wrong[0].tolist() == [3]


def test_without_subjects_partners_are_those_of_the_encoder(tmp_path):
    fox = record("A fox", (), np.full((8, 8, 3), 9, np.uint8))
    made = bank(tmp_path, [("a  fox", True, (), ("ab" * 8,)), ("a cat", True, (), ("cd" * 8,))])
    assert Judged.of([fox], made, "subjects").right[0].tolist() == []
    assert Judged.of([fox], made, "captions").right[0].tolist() == [0]


def test_drawn_rows_are_a_function_of_seed_and_record():
    rows = np.arange(50) * 3
    assert drawn_rows(rows, 2, 0, 1) == drawn_rows(rows, 2, 0, 1)
    assert len({tuple(drawn_rows(rows, 2, 0, record)) for record in range(20)}) > 15
    assert set(drawn_rows(rows, 100, 0, 1)) == set(rows.tolist())
    assert drawn_rows(rows[:0], 2, 0, 1) == []
