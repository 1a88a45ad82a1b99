"""What was taken out of a bank is found by no index of any kind, whatever happens to the bank."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cm3jax.config import RetrievalConfig
from cm3jax.errors import UserError
from cm3jax.report.html import cell, page
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import SAVED, BankDocument, mark_of
from cm3jax.retrieval.index import keep_index, open_index
from cm3jax.retrieval.milvus import MilvusIndex, forget
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import merge, remove

SIZE, WIDTH = 12_000, 32
"""More than ScaNN answers by brute force."""


@pytest.fixture
def bank(tmp_path):
    centres = np.random.default_rng(0).standard_normal((100, WIDTH))
    vectors = centres[np.arange(SIZE) % 100]
    vectors = vectors + 0.3 * np.random.default_rng(1).standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    documents = [
        BankDocument(f"d{i}", np.array([i], np.int32), "", True, True, "s", "l")
        for i in range(SIZE)
    ]
    return Bank.build(tmp_path / "bank", documents, vectors, "e", "v")


def open_as(bank, kind, address):
    """The bank opened again with an index that was saved, or left on a server."""
    config = RetrievalConfig(index=kind)
    if kind == "scann":
        keep_index(bank, config)
        assert (bank.path / SAVED).exists()
    reopened = Bank.open(bank.path)
    if kind == "milvus":
        open_index(reopened, kind, address).close()
    return reopened, open_index(reopened, kind, address)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Milvus's dependencies
@pytest.mark.parametrize("kind", ["exact", "scann", "milvus"])
def test_one_in_a_hundred_documents_is_removed_for_good(bank, tmp_path, kind):
    address = str(tmp_path / "server.db")
    rows = np.random.default_rng(2).choice(SIZE, SIZE // 100, replace=False)
    gone, vectors = {f"d{row}" for row in rows}, np.array(bank.vectors)
    copy = Bank.open(shutil.copytree(bank.path, tmp_path / "copy"))

    def found(bank):
        opened, index = open_as(bank, kind, address)
        ids = np.concatenate([index.search(vectors[rows[i : i + 40]], 10).ids for i in (0, 40, 80)])
        return [{opened.meta(int(id)).key for id in best} for best in ids]

    first = found(bank)
    assert sum(f"d{row}" in keys for row, keys in zip(rows, first, strict=True)) >= 119
    removed = Removed(keys=tuple(sorted(gone)))
    smaller = remove(bank, removed)
    if kind == "milvus":
        forget(vectors, address)
    assert len(smaller) == SIZE - len(gone)
    assert not set.union(*found(smaller)) & gone
    again = merge(bank.path, [smaller, copy])
    assert len(again) == SIZE - len(gone)
    assert not set.union(*found(again)) & gone


@pytest.mark.filterwarnings("ignore")
def test_a_server_forgets_the_vectors_of_a_bank(tmp_path):
    vectors, address = np.eye(8, dtype=np.float32), str(tmp_path / "server.db")
    index = MilvusIndex(vectors, address)
    forget(vectors, address)
    assert not index._client.has_collection(index.collection)
    forget(vectors, address)  # nothing to forget


def small(path, *keys):
    documents = [BankDocument(k, np.array([7], np.int32), k, True, True, "s", "l") for k in keys]
    return Bank.build(path, documents, np.eye(8, dtype=np.float32)[: len(keys)], "e", "v")


def show(path, document):
    path.parent.mkdir(exist_ok=True)
    path.write_text(page("a", cell("document", "its text", document=mark_of(document))))


def test_a_page_that_cannot_be_written_is_named_when_all_else_is_done(tmp_path):
    bank = small(tmp_path / "bank", "fox", "owl")
    stuck, other = tmp_path / "runs" / ("a" * 250 + ".html"), tmp_path / "runs" / "b.html"
    show(stuck, bank.meta(0))
    show(other, bank.meta(0))
    removed = Removed(keys=("fox",))
    for _ in range(2):  # given again, it looks again
        with pytest.raises(UserError, match="but 1 file shows them still") as raised:
            remove(bank, removed, [tmp_path / "runs"], lambda line: None)
        assert f"{stuck} (File name too long)" in str(raised.value)
        assert "its text" not in other.read_text()
        bank = Bank.open(bank.path)
        assert list(bank.rows) == ["owl"]
    stuck.unlink()
    assert list(remove(bank, removed, [tmp_path / "runs"], lambda line: None).rows) == ["owl"]


def test_an_old_bank_that_cannot_be_deleted_is_named_each_time(tmp_path, monkeypatch):
    """It holds what was taken out: as where its folder may not be written to, but the one around it
    may."""
    bank, removed = small(tmp_path / "bank", "fox", "owl"), Removed(keys=("fox",))
    old, unlink = tmp_path / ".bank.old", Path.unlink

    def refused(path, missing_ok=False):
        if Path(path).parent == old and Path(path).exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(Path(path), missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(type(bank.path), "unlink", refused)
        with pytest.raises(PermissionError, match=r"\.bank\.old"):
            remove(bank, removed)
        for _ in range(2):
            with pytest.raises(UserError, match=r"bank, but .*\.bank\.old, which it replaced, has"):
                remove(Bank.open(bank.path), removed)
        assert old.exists()
    assert list(remove(Bank.open(bank.path), removed).rows) == ["owl"]
    assert not old.exists()


@pytest.mark.parametrize("name", [".bank.part", ".bank.new", ".bank.old"])
def test_what_is_in_the_way_is_refused_before_anything_changes(tmp_path, name):
    bank, other = small(tmp_path / "bank", "fox", "owl"), small(tmp_path / "other", "elk")
    show(tmp_path / "report.html", bank.meta(0))
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("words")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for change in (
        lambda: remove(bank, Removed(keys=("fox",)), [tmp_path]),
        lambda: merge(bank.path, [bank, other], folders=[tmp_path]),
    ):
        with pytest.raises(UserError, match=f"{name} is none of this program's"):
            change()
        after = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
        assert after.keys() - before.keys() <= {tmp_path / ".bank.lock"}
        assert after.items() >= before.items()


def test_what_is_in_the_way_of_a_saved_index_is_refused_before_the_bank_is_made(tmp_path):
    bank = small(tmp_path / "bank", "fox", "owl")
    (bank.path / SAVED).write_text("my notes")
    with pytest.raises(
        UserError, match=r"bank/scann is a file where the saved index goes; move it away"
    ):
        remove(bank, Removed(keys=("fox",)))
    assert list(Bank.open(bank.path).rows) == ["fox", "owl"]
    assert (bank.path / SAVED).read_text() == "my notes"


@pytest.mark.parametrize("key", ["a\0b", "a\nb", "", "\u202e", "#" * 3000])
def test_a_document_of_any_name_can_be_removed(tmp_path, key):
    """A null, say, may be in the name of an archive's member."""
    bank = small(tmp_path / "bank", key, "owl", "elk")
    for gone, left in ((key, ["owl", "elk"]), ("owl", ["elk"])):
        bank = remove(bank, Removed(keys=(gone,)))
        assert list(bank.rows) == left
    copy = Bank.open(shutil.copytree(bank.path, tmp_path / "copy"))
    assert Removed.of(copy.path).keys == tuple(sorted([key, "owl"]))


def test_a_page_that_is_written_during_a_removal_is_blanked(tmp_path, monkeypatch):
    """By who had the old bank open and looked at the list just before it was written."""
    bank, shown, lines = small(tmp_path / "bank", "fox", "owl"), tmp_path / "runs" / "a.html", []
    fox, opened = bank.meta(0), Bank.open

    def written_first(path):
        show(shown, fox)
        return opened(path)

    show(shown, fox)
    with monkeypatch.context() as patch:
        patch.setattr(Bank, "open", written_first)
        remove(bank, Removed(keys=("fox",)), [tmp_path / "runs"], lines.append)
    assert "its text" not in shown.read_text()
    assert lines == [f"{shown}: 1 place blanked that showed them"]


def test_what_a_training_left_and_may_hold_the_document_is_named(tmp_path):
    bank, run = small(tmp_path / "bank", "fox", "owl"), tmp_path / "runs" / "decoder"
    run.parent.mkdir()
    show(run / "report.html", bank.meta(0))
    (run / "samples" / "8").mkdir(parents=True)
    (run / "samples" / "8" / "record-3.png").touch()
    (run / "bad-batch-5-process-0.npz").touch()
    lines = []
    remove(bank, Removed(keys=("fox",)), [tmp_path / "runs"], lines.append)
    assert lines == [
        f"{run}/bad-batch-5-process-0.npz: rows of a batch that ended a training, which may hold "
        "them; delete it",
        f"{run}/report.html: 1 place blanked that showed them",
        f"{run}/samples: its folders of steps are kept, and have what the training drew, maybe "
        "with them; delete those that must go",
    ]


def test_merging_blanks_what_it_takes_out(tmp_path):
    """Pages that show a document of the bank at hand which was taken out of another one."""
    mine, theirs = small(tmp_path / "a", "fox", "owl"), small(tmp_path / "b", "fox", "elk")
    shown = tmp_path / "runs" / "report.html"
    show(shown, mine.meta(0))
    theirs = remove(theirs, Removed(keys=("fox",)))
    lines = []
    both = merge(mine.path, [mine, theirs], folders=[tmp_path / "runs"], say=lines.append)
    assert list(both.rows) == ["owl", "elk"]
    assert lines == [f"{shown}: 1 place blanked that showed them"]
    assert "its text" not in shown.read_text()
    stuck = tmp_path / "runs" / ("a" * 250 + ".html")
    show(stuck, theirs.meta(0))
    theirs = remove(theirs, Removed(keys=("elk",)))
    with pytest.raises(UserError, match="but 1 file shows them still"):
        merge(both.path, [both, theirs], folders=[tmp_path / "runs"], say=lines.append)
    assert list(Bank.open(both.path).rows) == ["owl"]


def test_a_merge_keeps_marks_that_only_the_other_bank_knows(tmp_path):
    mine, theirs = small(tmp_path / "a", "owl"), small(tmp_path / "b", "fox", "elk")
    fox = theirs.meta(0)
    Removed(keys=("fox",)).save(mine.path)  # as an earlier version did, without marks
    theirs = remove(theirs, Removed(keys=("fox",)))
    both = merge(mine.path, [mine, theirs])
    assert mark_of(fox) in Removed.of(both.path).marks
    shown = tmp_path / "later" / "report.html"
    show(shown, fox)
    remove(both, Removed(keys=("fox",)), [shown.parent], lambda line: None)
    assert "its text" not in shown.read_text()


def test_pages_show_a_merged_document_under_both_of_its_keys(tmp_path):
    documents = [BankDocument("fox", np.array([9], np.int32), "x", True, True, "s", "l")]
    theirs = Bank.build(tmp_path / "b", documents, np.eye(8, dtype=np.float32)[:1], "e", "v")
    both = merge(tmp_path / "both", [small(tmp_path / "a", "fox"), theirs])
    renamed = both.meta(1)
    assert renamed.key.startswith("fox~")
    for name, one in (("before", documents[0]), ("after", renamed), ("other", both.meta(0))):
        show(tmp_path / "runs" / f"{name}.html", one)
    remove(both, Removed(keys=(renamed.key,)), [tmp_path / "runs"], lambda line: None)
    left = [path.stem for path in (tmp_path / "runs").iterdir() if "its text" in path.read_text()]
    assert left == ["other"]
