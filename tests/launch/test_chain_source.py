"""A source that changes while a chain on it is trained, and after."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3jax.errors import UserError
from launch import chain
from launch.chain import Options, members
from launch.chain_source import FILE, ChainSource


def write(folder: Path, *numbers: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"grey {number}")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def source(tmp_path, said) -> ChainSource:
    """Of a chain that was begun on 60 images, of which number 149 is held back."""
    write(tmp_path / "photos", *range(100, 160))
    options = Options(str(tmp_path / "photos"), str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    made = ChainSource(tmp_path / "mine", members(options)["decoder"], said.append)
    made.begin()
    made.require_same(trained=False, with_changes=False)
    return made


@pytest.mark.parametrize("with_changes", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_what_was_trained_on_is_never_held_back(tmp_path, source, trained, with_changes):
    write(tmp_path / "photos", *range(10, 17))  # in front, so that every 50th is another one
    with pytest.raises(UserError, match=r"\(7 new \(010\.png first\)\).*142\.png first.*another"):
        source.require_same(trained, with_changes)


def test_more_images_on_the_way_are_told_and_go_on_if_that_is_asked_for(tmp_path, source, said):
    write(tmp_path / "photos", *range(160, 163))
    with pytest.raises(UserError, match=r"begun \(3 new \(160.*--resume-with-changes"):
        source.require_same(trained=False, with_changes=False)
    source.require_same(trained=False, with_changes=True)
    assert "3 new (160.png first)" in said.pop()
    source.require_same(trained=False, with_changes=False)  # it is the chain's source by now


def test_a_finished_chain_takes_more_images_for_its_bank(tmp_path, source, said):
    write(tmp_path / "photos", *range(160, 163))
    source.require_same(trained=True, with_changes=False)
    assert not said


def test_an_edited_caption_and_a_file_that_is_gone_are_told(tmp_path, source):
    (tmp_path / "photos/101.txt").write_text("gray 101")
    (tmp_path / "photos/159.png").unlink()
    with pytest.raises(UserError, match=r"1 changed \(101\.png first\), 1 gone"):
        source.require_same(trained=False, with_changes=False)


def test_what_was_trained_on_and_left_for_a_while_is_not_held_back_when_it_returns(
    tmp_path, source
):
    photos = tmp_path / "photos"
    (photos / "158.png").rename(tmp_path / "158.png")
    source.require_same(trained=False, with_changes=True)
    (tmp_path / "158.png").rename(photos / "158.png")
    for number in range(101, 110):  # 158 is the 50th then
        (photos / f"{number}.png").unlink()
    with pytest.raises(UserError, match=r"158\.png first"):
        source.require_same(trained=False, with_changes=True)


def test_a_trained_image_under_another_name_is_not_held_back(tmp_path, source):
    for end in (".png", ".txt"):  # the 50th then
        (tmp_path / f"photos/110{end}").rename(tmp_path / f"photos/150-b{end}")
    with pytest.raises(UserError, match=r"150-b\.png first"):
        source.require_same(trained=True, with_changes=False)


def begun(tmp_path, name: str) -> ChainSource:
    options = Options(str(tmp_path / "photos"), str(tmp_path / name))
    (tmp_path / name).mkdir()
    made = ChainSource(tmp_path / name, members(options)["decoder"], print)
    made.begin()
    return made


def test_rows_of_a_table_are_known_by_their_place_alone(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "photos").mkdir()

    def save(*numbers: int) -> None:
        rows = {
            "caption": [f"grey {number}" for number in numbers],
            "jpg": [str(n).encode() for n in numbers],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "photos/0.parquet")

    save(*range(60))
    source = begun(tmp_path, "mine")
    source.require_same(trained=True, with_changes=False)
    save(99, *range(60))  # what is held back now is what was the 49th
    with pytest.raises(UserError, match=r"0\.parquet#49 first\)"):
        source.require_same(trained=True, with_changes=False)


def test_a_line_before_the_others_is_no_unseen_document(tmp_path):
    write(tmp_path / "photos", *range(60))
    file = tmp_path / "photos/documents.jsonl"
    lines = [json.dumps([{"text": "grey"}, {"image": f"{n:03}.png"}]) for n in range(60)]
    file.write_text("\n".join(lines[1:]))
    source = begun(tmp_path, "mine")
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"documents\.jsonl line 50 first\)"):
        source.require_same(trained=True, with_changes=False)


def test_nothing_is_known_of_a_chain_of_an_earlier_version(tmp_path, source):
    write(tmp_path / "photos", *range(10, 17))
    (tmp_path / "mine" / FILE).unlink()
    source.require_same(trained=False, with_changes=False)


def test_a_damaged_note_is_a_sentence(tmp_path, source):
    os.truncate(tmp_path / "mine" / FILE, 90)
    with pytest.raises(UserError, match=r"source\.npy is damaged .*remove "):
        source.require_same(trained=False, with_changes=False)


def test_drawn_sources_do_not_change(tmp_path):
    options = Options("emblems", str(tmp_path))
    source = ChainSource(tmp_path, members(options)["decoder"], print)
    source.begin()
    source.require_same(trained=False, with_changes=False)
    assert not list(tmp_path.iterdir())


def test_no_stage_begins_on_another_source(tmp_path, monkeypatch):
    """Though it changed while the one before ran."""
    write(tmp_path / "photos", *range(100, 160))
    options = Options(str(tmp_path / "photos"), str(tmp_path / "mine"))
    done: list[str] = []

    def stage(name: str) -> chain.Stage:
        def run() -> None:
            done.append(name)
            write(tmp_path / "photos", 160)

        return chain.Stage(name, 1, name, lambda: name in done, run)

    with pytest.raises(UserError, match=r"1 new \(160\.png first\)"):
        chain._run(options, [chain._guarded(stage(name), options) for name in ("one", "two")])
    assert done == ["one"]
    again = dataclasses.replace(options, resume_with_changes=True)
    made = members(options)["text"]
    Path(made.run_dir).mkdir()
    (Path(made.run_dir) / "config.json").touch()  # of the first life
    chain._run(again, [chain._guarded(stage(name), again) for name in ("one", "two")])
    assert done == ["one", "two"]
