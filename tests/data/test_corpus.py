import json

import numpy as np
import pytest

from cm3jax.config import DataConfig
from cm3jax.data.corpus import Corpus, CorpusWriter, Documents, licence_shares
from cm3jax.errors import UserError
from cm3jax.io.files import write_json
from tests.data.corpora import VOCAB, facts, shard, write_bank, write_corpus


@pytest.fixture
def bank(tmp_path):
    return write_bank(tmp_path)


@pytest.fixture
def corpus(tmp_path, bank):
    return write_corpus(tmp_path, bank)


def test_what_is_written_is_read(corpus, bank):
    shards = [shard(range(start, start + 100), len(bank)) for start in (0, 100, 200)]
    written = [document for part in shards for document in part.documents]
    assert len(corpus) == 300
    for record in (0, 99, 100, 299):
        document = corpus.document(record)
        assert document.key == written[record].key
        assert document.licence == written[record].licence
        np.testing.assert_array_equal(corpus.ids(record), written[record].ids)
    assert [len(ids) for ids in corpus.all_ids()] == corpus.lengths.tolist()
    np.testing.assert_array_equal(corpus.neighbours[100:200], shards[1].neighbours)
    np.testing.assert_array_equal(corpus.scores[200:], shards[2].scores)
    assert corpus.vocab == VOCAB
    assert corpus.manifest["licence_shares"] == {"CC0-1.0": 0.5, "CC-BY-4.0": 0.5}
    assert corpus.manifest["refused"] == {f"refused-{n}": "it is empty" for n in (0, 100, 200)}
    assert corpus.manifest["selection"] == {"seen": 30, "too_relevant": 3, "not_diverse": 0}
    corpus.verify()
    with pytest.raises(IndexError):
        corpus.ids(300)


def test_licence_shares_of_a_mixture_are_those_of_its_rows(tmp_path):
    home = {}
    for name, shares in (("a", {"MIT": 1.0}), ("b", {"MIT": 0.5, "CC0-1.0": 0.5})):
        home[name] = tmp_path / name
        write_json(home[name] / "corpus/train/manifest.json", {"licence_shares": shares})
    alone = DataConfig(corpus=f"{home['b']}/corpus")
    assert licence_shares(alone) == {"CC0-1.0": 0.5, "MIT": 0.5}
    mixed = DataConfig(mixture=((f"{home['a']}:pair", 3.0), (str(home["b"]), 1.0)))
    assert licence_shares(mixed) == {"CC0-1.0": 0.125, "MIT": 0.875}
    assert licence_shares(mixed, (1.0, 3.0)) == {"CC0-1.0": 0.375, "MIT": 0.625}
    assert licence_shares(DataConfig(corpus="")) == {}


def test_writing_goes_on_where_it_stopped(tmp_path, bank, corpus):
    stopped = CorpusWriter(tmp_path / "half", "this")
    stopped.write(1, shard(range(100, 200), len(bank)))
    writer = CorpusWriter(tmp_path / "half", "this")
    assert [writer.has(number) for number in range(3)] == [False, True, False]
    assert not writer.complete
    assert not CorpusWriter(tmp_path / "half", "that").has(1)
    with pytest.raises(UserError, match="not complete"):
        Corpus.open(writer.path)
    for number in (0, 2):
        writer.write(number, shard(range(100 * number, 100 * number + 100), len(bank)))
    writer.finish(3, facts(bank))
    assert writer.complete
    assert Corpus.open(writer.path).manifest["files"] == corpus.manifest["files"]


def test_a_corpus_made_from_something_else_is_made_again(tmp_path, bank, corpus):
    writer = CorpusWriter(corpus.path, "that")
    assert not writer.complete
    writer.write(0, shard(range(50), len(bank)))
    before = Corpus.open(corpus.path)
    assert len(before) == 300, "the one that stands is readable until it is replaced"
    ids = before.ids(299)
    writer.finish(1, facts(bank))
    assert len(Corpus.open(corpus.path)) == 50
    np.testing.assert_array_equal(before.ids(299), ids)  # and who reads it may read on
    assert not writer.path.with_name(".train.parts").exists()


def test_without_records_there_is_no_corpus(tmp_path, bank):
    writer = CorpusWriter(tmp_path / "empty", "this")
    writer.write(0, shard(range(0), len(bank)))
    with pytest.raises(UserError, match="no record"):
        writer.finish(1, facts(bank))


@pytest.mark.parametrize("field", ["shards", "files", "vocab", "licence_shares", "bank"])
@pytest.mark.parametrize("value", [None, 3, [{"a": None}]])
def test_a_damaged_manifest_raises_user_error(corpus, field, value):
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    (corpus.path / "manifest.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(UserError, match=f"manifest.json is damaged .*its '{field}'"):
        Corpus.open(corpus.path)


@pytest.mark.parametrize("notes", ["3", "{}", "not JSON", '{"made_from": "that"}'])
def test_a_shard_with_damaged_notes_is_made_again(tmp_path, bank, notes):
    writer = CorpusWriter(tmp_path / "train", "that")
    writer.write(0, shard(range(20), len(bank)))
    assert writer.has(0)
    (tmp_path / ".train.parts" / "shard-00000.json").write_text(notes)
    assert not writer.has(0)
    writer.write(0, shard(range(20), len(bank)))
    writer.finish(1, facts(bank))
    Corpus.open(writer.path).verify()


@pytest.mark.parametrize("name", ["lengths.npy", "documents-00001.array_record"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_the_damaged_file_is_named(corpus, name, damage):
    path = corpus.path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=name):
        Corpus.open(corpus.path)


def test_a_changed_byte_is_found_by_its_checksum(corpus):
    path = corpus.path / "scores.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"scores\.npy is damaged"):
        Corpus.open(corpus.path).verify()


@pytest.mark.parametrize("in_memory", [0, 1 << 28])
def test_documents_are_the_same_from_memory_and_from_disk(corpus, in_memory):
    documents = Documents(corpus.lengths, corpus.ids, corpus.all_ids, in_memory)
    rows = np.asarray([[5, -1, 250], [0, 5, 299]])
    ids, lengths = documents.padded(rows)
    assert ids.shape == (2, 3, lengths.max())
    assert ids.dtype == lengths.dtype == np.int32
    for place, row in np.ndenumerate(rows):
        expected = corpus.ids(int(row)) if row >= 0 else []
        np.testing.assert_array_equal(ids[place][: lengths[place]], expected)
        assert not ids[place][lengths[place] :].any()


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(bytes(content))


def test_records_of_one_kind_are_a_corpus(corpus):
    scenes = corpus.only("scene")
    numbers = [n for n in range(len(corpus)) if n % 3]
    assert len(scenes) == len(numbers)
    for place, number in enumerate(numbers):
        assert scenes.document(place).key == corpus.document(number).key
    for ids, number in zip(scenes.all_ids(), numbers, strict=True):
        np.testing.assert_array_equal(ids, corpus.ids(number))
    for column in ("lengths", "neighbours", "scores"):
        np.testing.assert_array_equal(getattr(scenes, column), getattr(corpus, column)[numbers])
    for outside in (-1, len(numbers)):
        with pytest.raises(IndexError):
            scenes.ids(outside)
    with pytest.raises(UserError, match="no record of the kind 'word'; it has pair, scene"):
        corpus.only("word")


def test_a_damaged_record_is_named_when_it_is_read(corpus):
    """The format's own hashes find it; the rest of the file stays readable."""
    path = corpus.path / "documents-00001.array_record"
    written = np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint8))
    whole = list(corpus.all_ids())
    flip(path, int(written[3000]))
    damaged = Corpus.open(corpus.path)
    unread = {}
    for record, ids in enumerate(whole):
        try:
            np.testing.assert_array_equal(damaged.ids(record), ids)
        except UserError as error:
            unread[record] = str(error)
    ((record, message),) = unread.items()
    assert f"record {record - 100} of {path} is damaged" in message
    with pytest.raises(UserError, match=message.partition(" (")[0]):
        list(damaged.all_ids())


def test_a_damaged_index_is_not_an_empty_file(corpus):
    path = corpus.path / "documents-00002.array_record"
    content = path.read_bytes()
    written = [place for place, byte in enumerate(content) if byte]
    index = [place for place in written if place > 1 << 16][20]  # the footer's block
    flip(path, index)
    with pytest.raises(
        UserError, match=r"documents-00002\S* is damaged \(its index says 0 records"
    ):
        list(Corpus.open(corpus.path).all_ids())
