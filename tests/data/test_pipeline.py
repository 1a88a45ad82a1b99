"""Streams: the same global batches from any position, on any number of processes."""

import dataclasses
import itertools
import threading

import jax
import numpy as np
import pytest

from cm3jax.data import packing
from cm3jax.data.packing import pack
from cm3jax.data.pipeline import (
    CorpusStream,
    Position,
    RecordStream,
    combine_fingerprints,
)
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.sequence import restore
from tests.data.corpora import VOCAB, experiment, write_bank, write_corpus


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    bank = write_bank(path)
    return experiment(path), write_corpus(path, bank), bank


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Five blocks an epoch instead of one."""
    for module in ("packing", "pipeline"):
        monkeypatch.setattr(f"cm3jax.data.{module}.BLOCK", 64)


START = Position()


def take(stream, count, position=START):
    return list(itertools.islice(stream.batches(position), count))


def same(left, right):
    return all(
        (a == b).all() for a, b in zip(*map(jax.tree.leaves, (left.data, right.data)), strict=True)
    )


def blocks(stream, epoch):
    return [stream.plan(epoch, block) for block in range(5)]


def test_rows_hold_whole_samples_of_their_records(prepared):
    config, corpus, bank = prepared
    stream = CorpusStream(config, corpus, bank)
    plan = stream.plan(0, 1)
    batch = stream.rows(plan)
    shown = 0
    for sample in range(len(plan.records)):
        row, segment = plan.places.rows[sample], plan.places.segments[sample]
        inside = batch.segments[row] == segment
        tokens = batch.tokens[row][inside]
        assert batch.positions[row][inside].tolist() == list(range(len(tokens)))
        ids = [bank.ids(int(i)) for i in plan.documents[sample] if i >= 0]
        documents = np.concatenate([[], *([*part, VOCAB.break_] for part in ids)])
        back = restore(tokens, 1 + len(documents), VOCAB)
        np.testing.assert_array_equal(back.documents, documents)
        np.testing.assert_array_equal(back.query, corpus.ids(int(plan.records[sample])))
        shown += len(ids)
    assert shown > 30
    assert (batch.tokens[batch.segments == 0] == VOCAB.pad).all()
    assert batch.tokens.shape == (plan.rows, 64)


def test_an_epoch_holds_every_record_once_in_another_order(prepared):
    config, corpus, bank = prepared
    stream = CorpusStream(config, corpus, bank)
    epochs = [np.concatenate([plan.records for plan in blocks(stream, n)]) for n in (0, 1)]
    for records in epochs:
        np.testing.assert_array_equal(np.sort(records), np.arange(300))
    assert (epochs[0] != epochs[1]).mean() > 0.9


def test_batches_go_through_epochs_without_loss_or_repetition(prepared):
    config, corpus, bank = prepared
    stream = CorpusStream(config, corpus, bank)
    rows = [sum(plan.rows for plan in blocks(stream, epoch)) for epoch in (0, 1)]
    assert rows[0] % 8, "the test wants a batch that reaches into the next epoch"
    batches = take(stream, sum(rows) // 8)
    got = np.concatenate([batch.data.tokens for batch in batches])
    want = np.concatenate([stream.rows(p).tokens for n in (0, 1) for p in blocks(stream, n)])
    np.testing.assert_array_equal(got, want[: len(got)])
    crossing = batches[rows[0] // 8]
    assert crossing.next.epoch == 1


def test_any_position_gives_the_same_batches(prepared):
    config, corpus, bank = prepared
    stream = CorpusStream(config, corpus, bank)
    straight = take(stream, 40)
    assert len({batch.fingerprint for batch in straight}) == 40
    for done in (1, 17, 30):
        resumed = take(CorpusStream(config, corpus, bank), 40 - done, straight[done - 1].next)
        for left, right in zip(resumed, straight[done:], strict=True):
            assert left.next == right.next
            assert left.fingerprint == right.fingerprint
            assert same(left, right)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(prepared, processes):
    config, corpus, bank = prepared
    whole = take(CorpusStream(config, corpus, bank), 12)
    parts = [take(CorpusStream(config, corpus, bank, i, processes), 12) for i in range(processes)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert {share.next for share in shares} == {batch.next}
        assert combine_fingerprints([share.fingerprint for share in shares]) == batch.fingerprint
        for leaf, *pieces in zip(*(jax.tree.leaves(b.data) for b in (batch, *shares)), strict=True):
            np.testing.assert_array_equal(leaf, np.concatenate(pieces))


def test_the_seed_decides(prepared):
    config, corpus, bank = prepared
    other = dataclasses.replace(config, seed=1)
    left, right = (take(CorpusStream(c, corpus, bank), 1)[0] for c in (config, other))
    assert not same(left, right)


def test_reading_from_disk_gives_the_same_rows(prepared, monkeypatch):
    config, corpus, bank = prepared
    from_memory = take(CorpusStream(config, corpus, bank), 5)
    monkeypatch.setattr("cm3jax.data.corpus.IN_MEMORY", 0)
    from_disk = take(CorpusStream(config, corpus, bank), 5)
    assert all(map(same, from_memory, from_disk))


def test_no_thread_is_left_behind(prepared):
    config, corpus, bank = prepared
    before = threading.active_count()
    batches = CorpusStream(config, corpus, bank).batches(START)
    next(batches)
    batches.close()
    assert threading.active_count() <= before + 1


def test_documents_are_dropped_where_rows_are_short(prepared):
    config, corpus, bank = prepared
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, context=30))
    stream = CorpusStream(short, corpus, bank)
    plan = stream.plan(0, 0)
    assert plan.dropped > 0
    assert (stream.rows(plan).tokens == VOCAB.eos).sum() == 2 * len(plan.records)


def test_a_record_too_long_for_a_row_is_named(prepared):
    config, corpus, bank = prepared
    tiny = dataclasses.replace(config, model=dataclasses.replace(config.model, context=16))
    with pytest.raises(UserError, match=r"record 'record-\d+' .* does not fit a row"):
        CorpusStream(tiny, corpus, bank)


def test_open_checks_that_parts_belong_together(prepared, tmp_path):
    config, _, _ = prepared
    assert take(CorpusStream.open(config, "train"), 1)[0].data.tokens.shape == (8, 64)
    with pytest.raises(UserError, match="validation is missing"):
        CorpusStream.open(config, "validation")
    other = write_bank(tmp_path, documents=5)
    stray = dataclasses.replace(config.data, bank=str(other.path))
    with pytest.raises(UserError, match="another bank"):
        CorpusStream.open(dataclasses.replace(config, data=stray), "train")
    sizes = dataclasses.replace(config.vocab, text_pieces=51)
    with pytest.raises(UserError, match="make them equal"):
        CorpusStream.open(dataclasses.replace(config, vocab=sizes), "train")
    Bank.build(tmp_path / "bank", [], np.zeros((0, 8), np.float32), "encoder", "vocab")
    with pytest.raises(UserError, match="vocab"):
        CorpusStream.open(dataclasses.replace(config, data=stray), "train")


def test_packing_is_whole_disjoint_and_tight():
    lengths = np.random.default_rng(0).integers(1, 100, 3000)
    places = pack(lengths, 100)
    used = np.zeros((int(places.rows.max()) + 1, 100), int)
    for row, offset, length in zip(places.rows, places.offsets, lengths, strict=True):
        assert offset + length <= 100
        used[row, offset : offset + length] += 1
    assert used.max() == 1
    assert used.mean() > 0.97
    for row in range(5):
        inside = np.flatnonzero(places.rows == row)
        assert sorted(places.segments[inside].tolist()) == list(range(1, len(inside) + 1))


def test_a_plan_reads_no_document(prepared):
    config, corpus, bank = prepared
    stream = CorpusStream(config, corpus, bank)
    plan = packing.plan_block(stream.table, 0, 0, 0, 64, 2, config.cm3)
    np.testing.assert_array_equal(plan.records, stream.plan(0, 0).records)


# ------------------------------------------------------------------------------ records in memory


def record_stream(**changes):
    values = {"arrays": {"x": np.arange(10) * 3}, "batch": 4, "seed": 0} | changes
    return RecordStream(**values)


def test_records_come_once_an_epoch_across_batches():
    values = np.concatenate([batch.data["x"] for batch in take(record_stream(), 5)])
    for epoch in (values[:10], values[10:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10) * 3)


def test_records_resume_and_share():
    straight = take(record_stream(), 8)
    resumed = take(record_stream(), 5, straight[2].next)
    assert all(map(same, resumed, straight[3:]))
    parts = [take(record_stream(process_index=i, process_count=2), 8) for i in range(2)]
    for batch, left, right in zip(straight, *parts, strict=True):
        np.testing.assert_array_equal(batch.data["x"], np.append(left.data["x"], right.data["x"]))


def test_streams_refuse_what_cannot_work():
    with pytest.raises(UserError, match="multiple of 3"):
        take(record_stream(process_count=3), 1)
    with pytest.raises(UserError, match="no records"):
        take(record_stream(arrays={"x": np.zeros(0)}), 1)
