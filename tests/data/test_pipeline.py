"""Streams: the same global batches from any position, on any number of processes."""

import dataclasses
import itertools
import json
import threading
import time
from collections import Counter

import jax
import numpy as np
import pytest

from cm3jax.data import packing
from cm3jax.data.cm3_rows import CorpusRows, RowsConfig
from cm3jax.data.corpus import Corpus, CorpusDocument, CorpusWriter, Shard
from cm3jax.data.packing import OWN, pack_rows
from cm3jax.data.pipeline import (
    CorpusStream,
    Position,
    RecordStream,
    combine_fingerprints,
)
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.sequence.rotation import restore
from tests.data.corpora import (
    VOCAB,
    corpus_stream,
    experiment,
    facts,
    pair,
    write_bank,
    write_corpus,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    bank = write_bank(path)
    return experiment(path), write_corpus(path, bank), bank


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Five blocks an epoch instead of one, and fewer batches ahead."""
    monkeypatch.setattr(CorpusStream, "tokens_at_once", 1 << 12)
    for module in ("packing", "cm3_rows"):
        monkeypatch.setattr(f"cm3jax.data.{module}.BLOCK", 64)


START = Position()


def take(stream, count, position=START):
    return list(itertools.islice(stream.batches(position), count))


def same(left, right):
    return all(
        (a == b).all() for a, b in zip(*map(jax.tree.leaves, (left.data, right.data)), strict=True)
    )


def blocks(rows, epoch):
    return [rows.plan(epoch, block) for block in range(5)]


def rows_of(config, corpus, bank):
    return CorpusRows(RowsConfig.of(config), corpus, bank)


def stream_of(config, corpus, bank, *process):
    return CorpusStream(config.data, config.seed, [rows_of(config, corpus, bank)], *process)


def with_rows(config, kind):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, rows=kind))


KINDS = pytest.mark.parametrize("kind", ["whole", "stream"])


def sample(rows, plan, number):
    """The ids of a plan's sample before rotation, and its documents with their breaks."""
    ids = [rows.bank.ids(int(i)) for i in plan.documents[number] if i >= 0]
    documents = np.concatenate([[], *([*part, VOCAB.break_] for part in ids)])
    query = rows.corpus.ids(int(plan.records[number]))
    return np.concatenate([[VOCAB.eos], documents, query, [VOCAB.eos]]), documents


def test_rows_hold_whole_samples_of_their_records(prepared):
    config, corpus, bank = prepared
    rows = rows_of(config, corpus, bank)
    plan = rows.plan(0, 1)
    batch = rows.build(plan)
    shown = 0
    for number in range(len(plan.records)):
        row, segment = plan.places.rows[number], plan.places.segments[number]
        inside = batch.segments[row] == segment
        tokens = batch.tokens[row][inside]
        assert batch.positions[row][inside].tolist() == list(range(len(tokens)))
        _, documents = sample(rows, plan, number)
        back = restore(tokens, 1 + len(documents), VOCAB)
        np.testing.assert_array_equal(back.documents, documents)
        np.testing.assert_array_equal(back.query, corpus.ids(int(plan.records[number])))
        shown += (plan.documents[number] >= 0).sum()
    assert shown > 30
    assert (batch.tokens[batch.segments == 0] == VOCAB.pad).all()
    assert batch.tokens.shape == (plan.rows, 64)


@pytest.mark.parametrize(("queries", "places"), [("both", 2), ("text", 0), ("image", 1)])
def test_documents_are_those_of_the_queries_asked_for(prepared, queries, places):
    config, corpus, bank = prepared
    retrieval = dataclasses.replace(config.retrieval, queries=queries, documents=2)
    plan = rows_of(dataclasses.replace(config, retrieval=retrieval), corpus, bank).plan(0, 1)
    seen = set()
    for record, shown in zip(plan.records, plan.documents, strict=True):
        stored = corpus.neighbours[record]
        for document in shown[shown >= 0]:
            seen |= {place for place in range(2) if document in stored[:, place]}
            assert places == 2 or document in stored[:, places]
    assert places != 2 or seen == {0, 1}


def test_wrong_documents_are_other_records_own_and_any_order_may_be(prepared):
    config, corpus, bank = prepared

    def shown(**changes):
        cm3 = dataclasses.replace(config.cm3, no_documents=0.0, **changes)
        rows = rows_of(dataclasses.replace(config, cm3=cm3), corpus, bank)
        plans = blocks(rows, 0)
        return {
            int(record): documents.tolist()
            for plan in plans
            for record, documents in zip(plan.records, plan.documents, strict=True)
        }

    plain, wrong = shown(), shown(wrong_documents=1.0)
    mixed = shown(wrong_documents=1.0, shuffle_documents=True)
    stored = set(corpus.neighbours.ravel().tolist())
    strange = 0
    for record, documents in wrong.items():
        mine = set(corpus.neighbours[record].ravel().tolist())
        strange += any(document not in mine for document in documents)
        assert set(documents) <= stored
        assert sorted(mixed[record]) == sorted(documents)
    assert strange > 0.6 * len(wrong)  # others are the record's own by chance, or found no room
    swapped = sum(mixed[record] != documents for record, documents in wrong.items())
    assert swapped / len(wrong) == pytest.approx(0.5, abs=0.12)
    half = shown(wrong_documents=0.5)
    changed = np.mean([half[record] != plain[record] for record in plain])
    assert changed == pytest.approx(0.5, abs=0.12)


@KINDS
def test_a_record_may_be_its_own_document(prepared, kind):
    config, corpus, bank = prepared
    cm3 = dataclasses.replace(config.cm3, no_documents=0.25, own_documents=0.5, mean_masks=0.0)
    rows = rows_of(with_rows(dataclasses.replace(config, cm3=cm3), kind), corpus, bank)
    shown = {0: 0, 1: 0}
    for plan in blocks(rows, 0):
        batch = rows.build(plan)
        for sample, documents in enumerate(plan.documents):
            own = bool(OWN in documents)
            shown[own] += 1
            if not own:
                continue
            assert documents.tolist() == [OWN, *[-1] * (len(documents) - 1)]
            offset, row = plan.places.offsets[sample], plan.places.rows[sample]
            ids = corpus.ids(int(plan.records[sample]))
            twice = [VOCAB.eos, *ids, VOCAB.break_, *ids, VOCAB.eos]
            read = batch.tokens[row][max(offset, 0) : offset + len(twice)]
            assert read.tolist() == twice[max(-offset, 0) :][: len(read)]
    assert shown[1] / sum(shown.values()) == pytest.approx(0.375, abs=0.12)


def test_no_wrong_document_has_the_picture_of_its_record(tmp_path):
    """The bank has every record's image twice; the candidates of each are the next two images,
    and so others' candidates show it its own."""
    rng = np.random.default_rng(0)
    documents = [
        BankDocument(
            f"d{n}", pair(rng), "", True, True, "t", "CC0-1.0", pictures=(f"{n % 6:016x}",)
        )
        for n in range(12)
    ]
    vectors = np.eye(12, dtype=np.float32)
    bank = Bank.build(tmp_path / "bank", documents, vectors, "encoder", VOCAB.fingerprint)
    records = [
        CorpusDocument(f"r{n}", "pair", "CC0-1.0", pair(rng), pictures=(f"{n:016x}",))
        for n in range(5)
    ] + [CorpusDocument("copy", "pair", "CC0-1.0", documents[11].ids)]
    found = np.asarray([[(n + 1) % 6, 6 + (n + 2) % 6] for n in range(6)], np.int32)
    neighbours = np.tile(found[:, None, None], (1, 2, 2, 1))
    shard = Shard(records, neighbours, np.ones(neighbours.shape, np.float32), {}, {"seen": 1})
    writer = CorpusWriter(tmp_path / "corpus", "this")
    writer.write(0, shard)
    writer.finish(1, facts(bank))
    config = experiment(tmp_path)
    cm3 = dataclasses.replace(config.cm3, no_documents=0.0, wrong_documents=1.0)
    rows = rows_of(dataclasses.replace(config, cm3=cm3), Corpus.open(writer.path), bank)
    shown = {n: set() for n in range(6)}
    for epoch in range(60):
        plan = rows.plan(epoch, 0)
        for record, given in zip(plan.records.tolist(), plan.documents.tolist(), strict=True):
            shown[record] |= set(given) - {-1}
    for record in range(5):
        own = {record, record + 6}
        assert not own & shown[record]
        assert len(shown[record]) > 5
    assert 11 not in shown[5], "its very ids"
    assert 5 in shown[5]


def unrotated(ids):
    """A stream row before its spans were moved: its tail begins where the first mask recurs."""
    masks = np.flatnonzero(ids == VOCAB.sentinel(0))
    source, tail = (ids[: masks[1]], ids[masks[1] :]) if len(masks) else (ids, ids[:0])
    spans = {}
    while len(tail):
        stop = int(np.flatnonzero(tail == VOCAB.eoss)[0])
        spans[int(tail[0])], tail = tail[1:stop], tail[stop + 1 :]
    parts = [spans[int(id_)] if VOCAB.is_sentinel(id_) else [id_] for id_ in source]
    return np.concatenate(parts), len(spans)


def test_stream_rows_are_the_samples_one_after_another(prepared):
    """Every token of a block's samples stands in one row, in order; rows are full."""
    config, corpus, bank = prepared
    rows = rows_of(with_rows(config, "stream"), corpus, bank)
    plan = rows.plan(0, 1)
    batch = rows.build(plan)
    first = {}
    for number in range(len(plan.records)):  # the piece of each sample that has its beginning
        record = int(plan.records[number])
        if record not in first or plan.places.offsets[number] >= 0:
            first[record] = number
    order = packing.epoch_order(0, 0, 300)[64:128].tolist()
    want = np.concatenate([sample(rows, plan, first[record])[0] for record in order])

    pieces, masked = {}, 0
    for row in range(plan.rows):
        length = int((batch.segments[row] > 0).sum())
        piece, masks = unrotated(batch.tokens[row, :length])
        key = int(plan.keys[plan.places.rows == row][0])
        pieces[key] = piece
        masked += masks
        asked = int(plan.masks[plan.places.rows == row][0])
        assert masks <= asked
        if key < 2 * 64 + plan.rows - 1:  # the block's last row is as long as it is
            assert len(piece) == 64 - 3 * asked
            assert length == 64 - 3 * (asked - masks)
    assert masked > plan.rows / 2
    np.testing.assert_array_equal(np.concatenate([pieces[key] for key in sorted(pieces)]), want)
    real = batch.segments > 0
    assert (batch.segments[real] == 1).all()
    places = np.broadcast_to(np.arange(64), real.shape)
    np.testing.assert_array_equal(batch.positions, np.where(real, places, 0))


@KINDS
def test_an_epoch_holds_every_record_once_in_another_order(prepared, kind):
    config, corpus, bank = prepared
    rows = rows_of(with_rows(config, kind), corpus, bank)
    plans = [blocks(rows, epoch) for epoch in (0, 1)]
    begun = [
        np.concatenate([plan.records[plan.places.offsets >= 0] for plan in epoch])
        for epoch in plans
    ]
    for records in begun:
        np.testing.assert_array_equal(np.sort(records), np.arange(300))
    assert (begun[0] != begun[1]).mean() > 0.9


@KINDS
def test_batches_go_through_epochs_without_loss_or_repetition(prepared, kind):
    config, corpus, bank = prepared
    config = with_rows(config, kind)
    corpus_rows = rows_of(config, corpus, bank)
    stream = CorpusStream(config.data, config.seed, [corpus_rows])
    rows = [sum(plan.rows for plan in blocks(corpus_rows, epoch)) for epoch in (0, 1)]
    assert rows[0] % 8, "the test wants a batch that reaches into the next epoch"
    batches = take(stream, sum(rows) // 8)
    got = np.concatenate([batch.data.tokens for batch in batches])
    plans = [plan for epoch in (0, 1) for plan in blocks(corpus_rows, epoch)]
    want = np.concatenate([corpus_rows.build(plan).tokens for plan in plans])
    np.testing.assert_array_equal(got, want[: len(got)])
    crossing = batches[rows[0] // 8]
    assert crossing.next.epoch == 1


def test_the_seed_decides(prepared):
    config, corpus, bank = prepared
    other = dataclasses.replace(config, seed=1)
    left, right = (take(stream_of(c, corpus, bank), 1)[0] for c in (config, other))
    assert not same(left, right)


def test_reading_from_disk_gives_the_same_rows(prepared, monkeypatch):
    config, corpus, bank = prepared
    from_memory = take(stream_of(config, corpus, bank), 5)
    monkeypatch.setattr("cm3jax.data.corpus.IN_MEMORY", 0)
    from_disk = take(stream_of(config, corpus, bank), 5)
    assert all(map(same, from_memory, from_disk))


def test_no_thread_is_left_behind(prepared):
    config, corpus, bank = prepared
    before = threading.active_count()
    batches = stream_of(config, corpus, bank).batches(START)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 10  # told to end, they do so in their own time
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_documents_are_dropped_where_whole_samples_do_not_fit(prepared):
    config, corpus, bank = prepared
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, context=30))
    rows = rows_of(short, corpus, bank)
    plan = rows.plan(0, 0)
    assert plan.dropped > 0
    assert (rows.build(plan).tokens == VOCAB.eos).sum() == 2 * len(plan.records)


def test_a_record_longer_than_a_row_is_named_or_cut(prepared):
    config, corpus, bank = prepared
    tiny = dataclasses.replace(config, model=dataclasses.replace(config.model, context=16))
    with pytest.raises(UserError, match=r"record 'record-\d+' .* does not fit a row"):
        rows_of(tiny, corpus, bank)
    rows = rows_of(with_rows(tiny, "stream"), corpus, bank)
    plan = rows.plan(0, 0)
    assert rows.build(plan).tokens.shape == (plan.rows, 16)
    assert np.bincount(plan.records).max() > 2


def test_open_checks_that_parts_belong_together(prepared, tmp_path):
    config, _, _ = prepared
    assert take(corpus_stream(config, "train"), 1)[0].data.tokens.shape == (8, 64)
    with pytest.raises(UserError, match="validation is missing"):
        corpus_stream(config, "validation")
    other = write_bank(tmp_path, documents=5)
    stray = dataclasses.replace(config.data, bank=str(other.path))
    with pytest.raises(UserError, match="another bank"):
        corpus_stream(dataclasses.replace(config, data=stray), "train")
    sizes = dataclasses.replace(config.vocab, text_pieces=51)
    with pytest.raises(UserError, match="make them equal"):
        corpus_stream(dataclasses.replace(config, vocab=sizes), "train")
    Bank.build(tmp_path / "bank", [], np.zeros((0, 8), np.float32), "encoder", "vocab")
    with pytest.raises(UserError, match="vocab"):
        corpus_stream(dataclasses.replace(config, data=stray), "train")


def test_packing_is_whole_disjoint_and_tight():
    lengths = np.random.default_rng(0).integers(1, 100, 3000)
    places = pack_rows(lengths, 100)
    used = np.zeros((int(places.rows.max()) + 1, 100), int)
    for row, offset, length in zip(places.rows, places.offsets, lengths, strict=True):
        assert offset + length <= 100
        used[row, offset : offset + length] += 1
    assert used.max() == 1
    assert used.mean() > 0.97
    for row in range(5):
        inside = np.flatnonzero(places.rows == row)
        assert sorted(places.segments[inside].tolist()) == list(range(1, len(inside) + 1))


# ------------------------------------------------------------------------------ mixtures, positions


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Three prepared directories of 300, 60 and 20 records, and an experiment that mixes them."""
    path = tmp_path_factory.mktemp("mixture")
    for name, records in {"large": 300, "small": 60, "tiny": 20}.items():
        bank = write_bank(path / name)
        write_corpus(path / name, bank, records, shards=1)
    homes = ((f"{path}/large", 6.0), (f"{path}/small", 3.0), (f"{path}/tiny", 1.0))
    return experiment(path, mixture=homes)


def opened(config, *process):
    return CorpusStream(config.data, config.seed, corpus_stream(config, "train").corpora, *process)


def records_of(stream, position, count):
    """(corpus, epoch, record) of the samples that begin in the next batches' rows."""
    return [
        (number, int(epoch), int(record))
        for share in itertools.islice(stream._shares(position), count)
        for number, plan in enumerate(share.plans)
        for epoch, record, offset in zip(
            plan.epochs, plan.records, plan.places.offsets, strict=True
        )
        if offset >= 0
    ]


def test_a_mixture_keeps_its_weights_and_every_corpus_its_epochs(mixture):
    stream = opened(mixture)
    shares = list(itertools.islice(stream._shares(START), 200))
    rows = np.asarray([[plan.rows for plan in share.plans] for share in shares])
    assert (rows.sum(1) == 8).all()
    np.testing.assert_allclose(rows.mean(0), [4.8, 2.4, 0.8], atol=0.25)
    end = shares[-1].next
    assert end.row == 1600
    assert end.parts[1].epoch > end.parts[0].epoch >= 1
    seen = Counter(records_of(opened(mixture), START, 200))
    assert max(seen.values()) == 1, "a record came twice in an epoch"
    for number, size in enumerate((300, 60, 20)):
        complete = [record for n, epoch, record in seen if (n, epoch) == (number, 0)]
        assert sorted(complete) == list(range(size))


def test_the_rows_of_a_mixture_are_those_of_its_corpora(mixture):
    stream = opened(mixture)
    share = next(stream._shares(START))
    batch = take(opened(mixture), 1)[0].data
    for corpus, plan, rows in zip(stream.corpora, share.plans, share.rows, strict=True):
        np.testing.assert_array_equal(batch.tokens[rows], corpus.build(plan).tokens)


def test_a_mixture_takes_records_of_one_kind(mixture):
    home = mixture.data.mixture[0][0]
    parts = ((f"{home}:pair", 1.0), (home, 1.0))
    stream = opened(
        dataclasses.replace(mixture, data=dataclasses.replace(mixture.data, mixture=parts))
    )
    pairs, everything = (rows.corpus for rows in stream.corpora)
    assert {pairs.document(n).kind for n in range(len(pairs))} == {"pair"}
    assert (len(pairs), len(everything)) == (100, 300)


def test_a_mixture_wants_one_vocabulary_and_positive_weights(mixture, tmp_path):
    homes = mixture.data.mixture
    with pytest.raises(UserError, match=r"large the weight 0\.0; give a positive one"):
        dataclasses.replace(mixture.data, mixture=((homes[0][0], 0.0),))
    stream = opened(mixture)
    with pytest.raises(
        UserError, match=r"read 2 corpora so far, and data\.mixture would make it 3"
    ):
        take(stream, 1, Position(row=8, parts=(START, START)))
    manifest = stream.corpora[1].corpus.manifest
    other = Corpus(stream.corpora[1].corpus.path, manifest | {"text_fingerprint": "other"})
    strange = rows_of(mixture, other, stream.corpora[1].bank)
    with pytest.raises(UserError, match="another vocabulary or other tokenizers"):
        CorpusStream(mixture.data, mixture.seed, [stream.corpora[0], strange])


@pytest.mark.parametrize(
    ("kind", "mixed", "count"),
    [
        ("stream", "mixture", 30),
        *(pytest.param(kind, "", 100, marks=pytest.mark.slow) for kind in ("whole", "stream")),
        pytest.param("whole", "mixture", 100, marks=pytest.mark.slow),
    ],
)
def test_the_next_batches_are_the_same_on_any_number_of_processes(
    prepared, mixture, kind, mixed, count
):
    """From a random position, through JSON, whatever the number of processes and of threads."""
    config = with_rows(mixture if mixed else prepared[0], kind)
    at = int(np.random.default_rng().integers(1, 200))
    before = opened(config)._shares(START)
    position = next(itertools.islice(before, at - 1, None)).next
    position = Position.from_json(json.loads(json.dumps(dataclasses.asdict(position))))
    want = [share.next for share in itertools.islice(before, count)]

    prints, leaves = [], []
    for processes, threads in ((1, 2), (2, 1), (4, 3)):
        data = dataclasses.replace(config.data, threads=threads)
        shared = dataclasses.replace(config, data=data)
        shares = [take(opened(shared, i, processes), count, position) for i in range(processes)]
        for own in shares:
            assert [batch.next for batch in own] == want
        steps = list(zip(*shares, strict=True))
        prints.append([combine_fingerprints([b.fingerprint for b in step]) for step in steps])
        data = [jax.tree.map(lambda *x: np.concatenate(x), *(b.data for b in s)) for s in steps]
        leaves.append([np.stack(leaf) for leaf in zip(*map(jax.tree.leaves, data), strict=True)])
        seen = [records_of(opened(shared, i, processes), position, count) for i in range(processes)]
        every = [record for own in seen for record in own]
        assert len(set(every)) == len(every) > 5 * count, "two processes read one record"
    assert prints[0] == prints[1] == prints[2]
    assert len(set(prints[0])) == count
    for other in leaves[1:]:
        for left, right in zip(leaves[0], other, strict=True):
            np.testing.assert_array_equal(left, right)


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
