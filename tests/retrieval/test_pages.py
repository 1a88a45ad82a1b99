"""What shows a document is blanked when the document is taken out, and nothing else is touched."""

import dataclasses
import json
import os

import numpy as np
import pytest

from cm3jax.evaluate.cases_page import figure_cell
from cm3jax.evaluate.results import Cell, Evaluation, Figure
from cm3jax.report.html import cell, figure, page, tag
from cm3jax.retrieval.bank_files import BankDocument, mark_of
from cm3jax.retrieval.pages import GONE, blank_html, blank_pages, noted
from cm3jax.retrieval.removed import Removed


def document(key, ids=(7, 8)):
    return BankDocument(key, np.asarray(ids, np.int32), f"a text of {key}", True, True, "s", "l")


SECRET, OTHER = document("secret"), document("other")
REMOVED = Removed(keys=("secret",), marks=(mark_of(SECRET),))


def blanked(removed, folders):
    """The lines that are said."""
    lines = []
    assert blank_pages(removed, folders, lines.append) == []
    return lines


def test_a_mark_is_of_key_and_content():
    marks = {mark_of(d) for d in (SECRET, OTHER, document("secret", (7, 9)))}
    assert len(marks) == 3
    assert mark_of(dataclasses.replace(SECRET, source="elsewhere")) == mark_of(SECRET)


def test_what_shows_a_document_is_blanked_in_its_place():
    cells = [
        cell("document", tag("div", tag("div", d.text)), picture="data:,x", document=mark_of(d))
        for d in (SECRET, OTHER)
    ]
    row = tag("div", SECRET.text, OTHER.text, data_document=f"{mark_of(OTHER)} {mark_of(SECRET)}")
    text = page("a run", figure("a prompt", *cells, cell("drawn", picture="data:,y")), row)
    new, count = blank_html(text, {mark_of(SECRET)})
    assert count == 2
    assert SECRET.text not in new
    assert new.count(OTHER.text) == 1  # in the row it ran into the other
    assert new.count(GONE) == 2
    assert new.count("<div") == new.count("</div>") == text.count("<div") - 2
    assert 'src="data:,y"' in new
    assert blank_html(new, {mark_of(SECRET)}) == (new, 0)
    assert blank_html(text, set()) == (text, 0)


def test_stored_results_lose_it_too(tmp_path):
    cells = tuple(Cell.of("retrieved", None, d.text, document=mark_of(d)) for d in (SECRET, OTHER))
    path = tmp_path / "results" / "shipped.json"
    Evaluation("run", {}, (Figure("kind", "prompt", cells),), {}, {}, "", 1.0).save(path)
    mine = {"document": mark_of(SECRET), "label": "of another program"}
    (tmp_path / "notes.json").write_text(json.dumps(mine))
    (line,) = blanked(REMOVED, [tmp_path])
    assert line == f"{path}: 1 place blanked that showed them"
    (shown,) = Evaluation.load(path).figures
    assert [one.text for one in shown.cells] == ["", OTHER.text]
    assert GONE in figure_cell(shown.cells[0])
    assert mark_of(OTHER) in figure_cell(shown.cells[1])
    assert json.loads((tmp_path / "notes.json").read_text()) == mine
    assert not blanked(REMOVED, [tmp_path])


@pytest.mark.parametrize(
    ("marked", "removed"),
    [(True, REMOVED), (False, REMOVED), (False, Removed(sources=("secret",)))],
)
def test_a_contact_sheet_goes_and_samples_are_named(tmp_path, marked, removed):
    for name, shown in (("mine", SECRET), ("others", OTHER)):
        folder = tmp_path / name
        folder.mkdir()
        known = {"key": shown.key, "source": shown.key, "licence": "l"}
        known |= {"mark": mark_of(shown)} if marked else {}
        line = {"name": f"fox-{name}", "documents": [{"path": "x.png"}, known]}
        (folder / "samples.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "contact.png").write_bytes(b"a sheet")
        (folder / f"fox-{name}.png").write_bytes(b"a sample")
    kept, deleted = blanked(removed, [tmp_path])
    assert deleted.startswith(f"{tmp_path}/mine/contact.png: deleted")
    assert kept == f"{tmp_path}/mine: drawn with them, and kept: fox-mine"
    assert not (tmp_path / "mine" / "contact.png").exists()
    assert (tmp_path / "mine" / "fox-mine.png").exists()
    assert (tmp_path / "others" / "contact.png").exists()


def test_pictures_for_captions_are_named(tmp_path):
    notes = {"7": {"documents": ["secret"]}, "8": {"documents": ["other"]}}
    (tmp_path / "drawn-00003.json").write_text(json.dumps(notes))
    (line,) = blanked(REMOVED, [tmp_path])
    assert line == f"{tmp_path}: drawn with them, and kept: 000000000007.png"


@pytest.mark.parametrize("rule", ["keys", "sources", "licences"])
def test_pictures_for_captions_are_named_by_rule(tmp_path, rule):
    by = {"keys": SECRET.key, "sources": SECRET.source, "licences": SECRET.licence}
    removed = Removed(**{rule: (by[rule],)}, marks=(mark_of(SECRET),))
    notes = {
        str(number): {"documents": [one.key], "shown": [noted(one)], "cosines": [0.5]}
        for number, one in ((7, SECRET), (8, OTHER))
    }
    path = tmp_path / "drawn-00003.json"
    path.write_text(json.dumps(notes))
    assert blanked(removed, [tmp_path]) == [
        f"{tmp_path}: drawn with them, and kept: 000000000007.png"
    ]
    path.write_text(json.dumps({"7": {"documents": ["secret"], "cosines": [0.5]}}))
    (line,) = blanked(removed, [tmp_path])
    assert (" made by an earlier version, which noted no source" in line) == (rule != "keys")


def test_a_line_that_is_cut_hides_no_other_one(tmp_path):
    line = {"name": "fox", "documents": [{"key": "secret", "mark": mark_of(SECRET)}]}
    lines = ['{"name": "cut', "7", json.dumps({"step": 3}), json.dumps(line), ""]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    (tmp_path / "contact.png").write_bytes(b"a sheet")
    kept, _ = blanked(REMOVED, [tmp_path])
    assert kept.endswith("and kept: fox")
    assert not (tmp_path / "contact.png").exists()


def test_no_pipe_is_waited_for(tmp_path):
    for name in ("a.html", "b.json", "samples.jsonl", "drawn-00000.json"):
        os.mkfifo(tmp_path / name)
    assert not blanked(REMOVED, [tmp_path])


@pytest.mark.parametrize("label", ["document", "retrieved, 0.71", "bank-17, 0.71", "0.712 a fox"])
def test_a_page_of_an_earlier_version_is_named(tmp_path, label):
    path = tmp_path / "report.html"
    path.write_text(page("a run", cell(label, "?", picture="data:,x")))
    (line,) = blanked(REMOVED, [tmp_path])
    assert line.startswith(f"{path}: made by an earlier version and may show them")


def test_somebody_elses_files_and_links_stay(tmp_path):
    (tmp_path / "away").mkdir()
    shown = page("a", cell("document", SECRET.text, document=mark_of(SECRET)))
    (tmp_path / "away" / "a.html").write_text(shown)
    here = tmp_path / "here"
    here.mkdir()
    os.symlink(tmp_path / "away", here / "linked")
    os.symlink(tmp_path / "away" / "a.html", here / "a.html")
    for name, content in (
        ("b.html", b"\xff not UTF-8"),
        ("c.json", b"[" * 100_000 + mark_of(SECRET).encode()),
        ("samples.jsonl", b'{"name": 3}\n7\n'),
        ("drawn-00000.json", b"[1]"),
    ):
        (here / name).write_bytes(content)
    before = {path: path.read_bytes() for path in here.glob("*.*")}
    assert not blanked(REMOVED, [here, tmp_path / "nowhere"])
    assert {path: path.read_bytes() for path in here.glob("*.*")} == before
    assert (tmp_path / "away" / "a.html").read_text() == shown


def test_a_file_that_cannot_be_written_stops_no_other(tmp_path):
    """A page under the longest name that there is has no room for a scratch file's, and a folder is
    not unlinked; unlike for permissions, this is so for every user."""
    shown = page("a", cell("document", SECRET.text, document=mark_of(SECRET)))
    full = tmp_path / ("a" * 250 + ".html")
    line = {"name": "fox", "documents": [{"key": "secret", "mark": mark_of(SECRET)}]}
    for path in (full, tmp_path / "b.html"):
        path.write_text(shown)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "samples.jsonl").write_text(json.dumps(line))
    (tmp_path / "m" / "contact.png").mkdir()
    (tmp_path / "z.html").write_text(shown)
    lines = []
    failed = blank_pages(REMOVED, [tmp_path], lines.append)
    assert failed == [
        f"{full} (File name too long)",
        f"{tmp_path / 'm' / 'contact.png'} (Is a directory)",
    ]
    for name in ("b.html", "z.html"):
        assert SECRET.text not in (tmp_path / name).read_text()
    assert [line.partition(": ")[0] for line in lines] == [
        str(tmp_path / name) for name in ("b.html", "m", "z.html")
    ]


def test_halves_of_pages_that_killed_processes_left_go_if_they_show_it(tmp_path):
    show = page("a run", cell("document", SECRET.text, document=mark_of(SECRET)))
    old, others = tmp_path / ".report.html.0123abcd.part", tmp_path / ".b.html.0123abcd.part"
    being, mine = tmp_path / ".c.html.0123abcd.part", tmp_path / ".report.html.part"
    for path in (old, being, mine):
        path.write_text(show[:-20])
    others.write_text(page("a run", cell("document", OTHER.text, document=mark_of(OTHER))))
    sheet = tmp_path / ".contact.png.0123abcd.part"
    sheet.write_bytes(b"half a picture")
    line = {"name": "a", "documents": [noted(SECRET)]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    for path in (old, others, mine, sheet):
        os.utime(path, (0, 0))
    lines = blanked(REMOVED, [tmp_path])
    assert f"{old}: deleted, half of a page that showed them, which a killed process left" in lines
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {others.name, being.name, mine.name, "samples.jsonl"}
