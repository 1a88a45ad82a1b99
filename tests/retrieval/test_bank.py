import contextlib
import dataclasses
import json
import random
import resource
import shutil

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.retrieval import bank as bank_module
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import merge, remove
from launch.env import user_sentence


def _documents(count: int) -> list[BankDocument]:
    return [
        BankDocument(
            key=f"record-{i}",
            ids=np.arange(i + 1, dtype=np.int32) + i,
            text=f"a föx number {i}" if i % 3 else "",
            has_text=bool(i % 3),
            has_image=i % 3 != 1,
            source="foxes" if i % 2 else "dogs",
            licence="CC0-1.0",
            subjects=("fox", f"n{i}"),
        )
        for i in range(count)
    ]


def _vectors(count: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def bank(tmp_path):
    return Bank.build(tmp_path / "bank", _documents(7), _vectors(7), "encoder-a", "vocab-a")


def test_what_is_written_is_read(bank):
    opened = Bank.open(bank.path, "encoder-a", "vocab-a")
    opened.verify()
    assert len(opened) == 7
    np.testing.assert_array_equal(opened.vectors, _vectors(7))
    for row, document in enumerate(_documents(7)):
        np.testing.assert_array_equal(opened.ids(row), document.ids)
        read, wanted = (dataclasses.asdict(one) for one in (opened.meta(row), document))
        assert read | {"ids": None} == wanted | {"ids": None}
    assert opened.lengths.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert opened.rows["record-5"] == 5
    assert opened.manifest["counts"] == {"pairs": 2, "texts": 2, "pictures": 3}
    assert opened.manifest["sources"] == {"dogs": 4, "foxes": 3}


def test_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(bank_module, "_SHARD", 3)
    bank = Bank.build(tmp_path / "bank", iter(_documents(7)), _vectors(7), "e", "v")
    shards = [name for name in bank.manifest["files"] if name.startswith("documents")]
    assert len(shards) == 3
    assert [bank.meta(row).key for row in range(7)] == [f"record-{row}" for row in range(7)]
    assert [document.key for document in bank.documents()] == list(bank.rows)


def test_equal_documents_give_equal_bytes(bank, tmp_path):
    again = Bank.build(tmp_path / "again", _documents(7), _vectors(7), "encoder-a", "vocab-a")
    names = sorted(path.name for path in bank.path.iterdir())
    assert names == sorted(path.name for path in again.path.iterdir())
    for name in names:
        assert (bank.path / name).read_bytes() == (again.path / name).read_bytes()
    other = Bank.build(tmp_path / "other", _documents(7), -_vectors(7), "encoder-a", "vocab-a")
    assert bank.fingerprint == again.fingerprint != other.fingerprint


def test_another_encoder_or_vocabulary_is_refused(bank):
    with pytest.raises(
        UserError, match="made with the encoder encoder-a, but this run has the encoder b"
    ):
        Bank.open(bank.path, "b", "vocab-a")
    with pytest.raises(UserError, match="made with the vocabulary vocab-a"):
        Bank.open(bank.path, "encoder-a", "b")


@pytest.mark.parametrize(
    ("field", "value"),
    [("shards", 3), ("shards", {"a": "b"}), ("files", None), ("files", {"x": 1}), ("encoder", [])]
    + [(name, value) for name in ("licences", "sources", "counts") for value in (None, {"a": "b"})],
)
def test_a_damaged_manifest_raises_user_error(bank, field, value):
    manifest = json.loads((bank.path / "manifest.json").read_text())
    (bank.path / "manifest.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(UserError, match=f"manifest.json is damaged .*its '{field}'"):
        Bank.open(bank.path)


@pytest.mark.parametrize("content", ["3", "[]", "null", '{"files": {}}'])
def test_a_manifest_of_something_else_raises_user_error(bank, content):
    (bank.path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged or of an earlier version"):
        Bank.open(bank.path)


@pytest.mark.parametrize("name", ["columns.npy", "vectors.npy"])
@pytest.mark.parametrize("content", [b"\0" * 8, b"\x93NUMPY\x01\x00\x00\xff"])
def test_a_column_with_other_bytes_is_named(bank, name, content):
    whole = (bank.path / name).read_bytes()
    (bank.path / name).write_bytes(content + whole[len(content) :])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        Bank.open(bank.path)


@pytest.mark.parametrize("name", ["columns.npy", "vectors.npy", "pictures.npy"])
def test_a_column_with_another_byte_in_its_header_is_a_sentence_or_reads_as_it_was(bank, name):
    path = bank.path / name
    whole, refused = path.read_bytes(), []
    wanted = [array.tobytes() for array in everything(bank)]
    draw = random.Random(name)
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(128)] = draw.randrange(32, 127)
        path.write_bytes(content)
        try:
            found = [array.tobytes() for array in everything(Bank.open(bank.path))]
        except UserError as error:
            refused.append(str(error))
        else:
            assert found == wanted
    assert len(refused) > 20
    assert all(f"{name} is damaged" in sentence for sentence in refused)


def everything(bank):
    """All that is read of columns."""
    hashes = [*bank.key_hashes.tolist(), *bank.content.tolist()]
    shown = bank.showing([f"{hash_:016x}" for hash_ in hashes])
    return [np.array(bank.vectors), bank.key_hashes, bank.content, bank.lengths, shown]


@pytest.mark.parametrize(
    "content", ["3", "null", '{"keys": 3}', '{"keys": [3]}', '{"names": []}', "[1]", "not JSON"]
)
def test_a_damaged_list_of_removed_documents_is_never_taken_for_none(bank, content):
    bank.path.with_name(f"{bank.path.name}-removed.json").write_text(content)
    with pytest.raises(UserError, match="the list of removed documents"):
        Bank.open(bank.path)


@pytest.mark.parametrize("room", [100, 2_000, 8_000])
def test_an_existing_bank_survives_a_full_disk(bank, room):
    """The first write that fails is of records, of a column or of notes."""
    before = {path.name: path.read_bytes() for path in bank.path.iterdir()}
    wide = np.full((100, 50), 50**-0.5, np.float32)
    documents = [
        BankDocument(f"n{i}", np.arange(20, dtype=np.int32), "new", True, False, "s", "l")
        for i in range(100)
    ]
    with full_disk(room), pytest.raises(OSError, match=r"File too large|No space left") as raised:
        Bank.build(bank.path, documents, wide, "e", "v")
    assert "make room there and start again" in user_sentence(raised.value)
    assert {path.name: path.read_bytes() for path in bank.path.iterdir()} == before
    Bank.open(bank.path).verify()
    assert len(Bank.build(bank.path, documents, wide, "e", "v")) == 100


@contextlib.contextmanager
def full_disk(room):
    """No file may grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_missing_and_truncated_files_are_named(bank):
    shard = bank.path / "documents-00000.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"documents-00000.array_record has \d+ of \d+ bytes"):
        Bank.open(bank.path)
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"documents-00000.array_record is damaged"):
        Bank.open(bank.path).verify()
    shard.unlink()
    with pytest.raises(UserError, match=r"documents-00000.array_record is missing"):
        Bank.open(bank.path)
    with pytest.raises(UserError, match="does not exist"):
        Bank.open(bank.path / "nothing")


def test_a_failed_build_leaves_the_old_bank(bank):
    with pytest.raises(UserError, match="two documents have the key 'record-0'"):
        Bank.build(bank.path, [*_documents(2), _documents(1)[0]], _vectors(3), "e", "v")
    for count in (1, 3):
        with pytest.raises(ValueError, match="vectors"):
            Bank.build(bank.path, _documents(2), _vectors(count), "e", "v")
    assert Bank.open(bank.path).fingerprint == bank.fingerprint
    assert [path.name for path in bank.path.parent.iterdir()] == ["bank"]


def test_removed_documents_are_gone(bank):
    smaller = remove(bank, Removed(keys=("record-2", "record-5")))
    assert list(smaller.rows) == ["record-0", "record-1", "record-3", "record-4", "record-6"]
    np.testing.assert_array_equal(smaller.vectors, np.delete(_vectors(7), [2, 5], axis=0))
    assert smaller.fingerprint != bank.fingerprint
    with pytest.raises(UserError, match="no document 'record-7'"):
        remove(smaller, Removed(keys=("record-7",)))
    # Once more, say to look through other pages: it is gone already.
    assert remove(smaller, Removed(keys=("record-5",))).fingerprint == smaller.fingerprint


def test_a_copy_without_its_list_of_removed_documents_gets_one_before_it_is_made_again(
    bank, tmp_path
):
    remove(bank, Removed(keys=("record-2",), sources=("foxes",)))
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(bank.path, copy)
    (copy / "vectors.npy").write_bytes(b"")
    with pytest.raises(UserError, match=rf"vectors.npy has 0 of \d+ bytes; remove {copy} and run"):
        Bank.open(copy)
    shutil.rmtree(copy)
    assert Removed.of(copy) == Removed.of(bank.path)


def test_rows_outside_raise(bank):
    for row in (-1, 7):
        with pytest.raises(IndexError):
            bank.ids(row)


def test_an_empty_bank(tmp_path):
    bank = Bank.build(tmp_path / "bank", [], np.zeros((0, 8), np.float32), "e", "v")
    assert len(bank) == 0
    assert list(bank.documents()) == []


def _others(path, start=5, count=4, encoder="encoder-a", source=None):
    documents = [
        dataclasses.replace(d, source=source or d.source) for d in _documents(start + count)[start:]
    ]
    return Bank.build(path, documents, _vectors(start + count)[start:], encoder, "vocab-a")


def test_documents_are_found_by_their_pictures(tmp_path):
    pictures = [("0a",), (), ("0b", "0a"), ("ff" * 8,)]
    made = [
        dataclasses.replace(d, pictures=own) for d, own in zip(_documents(4), pictures, strict=True)
    ]
    bank = Bank.build(tmp_path / "bank", made, _vectors(4), "encoder-a", "vocab-a")
    assert bank.showing(["0a"]).tolist() == [0, 2]
    assert bank.showing(["0b", "ff" * 8]).tolist() == [2, 3]
    assert bank.showing(["0c"]).tolist() == bank.showing([]).tolist() == []
    assert bank.meta(2).pictures == ("0b", "0a")
    smaller = remove(bank, Removed(keys=(bank.meta(0).key,)))
    assert smaller.showing(["0a"]).tolist() == [1]


def test_banks_are_merged_without_repeating_what_both_have(bank, tmp_path, monkeypatch):
    monkeypatch.setattr(bank_module, "_SHARD", 3)
    other = _others(tmp_path / "other")
    both = merge(tmp_path / "both", [bank, other])
    assert list(both.rows) == [f"record-{i}" for i in range(9)]
    np.testing.assert_array_equal(both.vectors, _vectors(9))
    both.verify()
    assert both.manifest["merged"] == [other.fingerprint]
    assert sum(both.manifest["sources"].values()) == 9
    straight = Bank.build(tmp_path / "all", _documents(9), _vectors(9), "encoder-a", "vocab-a")
    assert both.lengths.tolist() == straight.lengths.tolist()
    # Appending is merging into the first one's place.
    assert len(merge(bank.path, [bank, other])) == 9


def test_what_does_not_fit_is_not_merged(bank, tmp_path):
    with pytest.raises(UserError, match="only banks of one encoder can be merged"):
        merge(bank.path, [bank, _others(tmp_path / "b", encoder="other")])
    assert Bank.open(bank.path).fingerprint == bank.fingerprint


def test_another_document_under_the_same_key_gets_a_key_of_its_own(bank, tmp_path):
    """As of two downloads, whose shards and samples have the same names."""
    other = [dataclasses.replace(_documents(1)[0], ids=np.arange(9, dtype=np.int32))]
    clash = Bank.build(tmp_path / "c", other, _vectors(1), "encoder-a", "vocab-a")
    both = merge(tmp_path / "both", [bank, clash])
    *same, new = both.rows
    assert same == list(bank.rows)
    assert new.startswith("record-0~")
    np.testing.assert_array_equal(list(both.documents())[-1].ids, other[0].ids)
    again = merge(tmp_path / "again", [both, clash])
    assert list(again.rows) == list(both.rows), "merged once more it is not repeated"
    Removed(keys=(new,)).save(both.path)
    without = merge(tmp_path / "without", [Bank.open(both.path), clash])
    assert list(without.rows) == same, "and what was taken out stays out"


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        (Removed(keys=("record-4",)), [0, 1, 2, 3, 5, 6]),
        (Removed(sources=("dogs",)), [1, 3, 5]),
        (Removed(licences=("CC0-1.0",)), []),
        (Removed(keys=("record-1",), sources=("dogs",)), [3, 5]),
    ],
)
def test_documents_are_removed_by_key_source_or_licence(bank, removed, left):
    smaller = remove(bank, removed)
    assert list(smaller.rows) == [f"record-{i}" for i in left]
    removed.save(bank.path)
    assert dataclasses.replace(Removed.of(bank.path), marks=()) == removed


def test_an_earlier_list_of_removed_keys_still_counts(bank):
    (bank.path.parent / "bank-removed.json").write_text('["record-1"]')
    assert Removed.of(bank.path) == Removed(keys=("record-1",))


def test_what_is_not_there_cannot_be_removed(bank):
    for removed, said in (
        (Removed(sources=("cats",)), "no source 'cats'"),
        (Removed(licences=("MIT",)), "no licence 'MIT'"),
    ):
        with pytest.raises(UserError, match=said):
            remove(bank, removed)


def test_a_bank_of_an_earlier_version_is_refused(bank):
    path = bank.path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="of an earlier version"):
        Bank.open(bank.path)
