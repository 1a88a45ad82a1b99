import dataclasses

import numpy as np
import pytest

from cm3jax.config import RetrievalConfig
from cm3jax.data.cm3_rows import CorpusRows, RowsConfig
from cm3jax.data.corpus import Corpus, CorpusDocument, CorpusWriter, Shard
from cm3jax.data.document_probe import _others, document_probes
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from tests.data.corpora import VOCAB, experiment, facts, pair

SUBJECTS = ("fox", "cat", "owl", "elk", "")
"""By record and document; the last record and document have none."""
ALL = slice(0, 4)


def picture(number: int) -> str:
    return f"{number:016x}"


@pytest.fixture
def rows(tmp_path):
    """Five records; the bank has two documents of each one's subject, and the first record's own
    image; record n was found document n, then n + 1."""
    rng = np.random.default_rng(0)
    names = [(name,) if name else () for name in SUBJECTS]
    documents = [
        BankDocument(
            f"d{n}",
            pair(rng),
            "",
            True,
            True,
            "t",
            "CC0-1.0",
            names[n % 5],
            pictures=(picture(0 if n == 0 else 100 + n),),
        )
        for n in range(10)
    ]
    vectors = np.eye(10, 16, dtype=np.float32)
    bank = Bank.build(tmp_path / "bank", documents, vectors, "encoder", VOCAB.fingerprint)
    records = [
        CorpusDocument(
            f"r{n}", "pair", "CC0-1.0", pair(rng), pictures=(picture(n),), subjects=names[n]
        )
        for n in range(5)
    ]
    found = np.asarray([[n, (n + 1) % 5] for n in range(5)], np.int32)
    neighbours = np.tile(found[:, None, None], (1, 2, 2, 1))
    neighbours[:, :, 1] = 9  # by image something else
    shard = Shard(records, neighbours, np.ones(neighbours.shape, np.float32), {}, {"seen": 1})
    writer = CorpusWriter(tmp_path / "corpus", "this")
    writer.write(0, shard)
    writer.finish(1, facts(bank))
    config = RowsConfig.of(experiment(tmp_path))
    return CorpusRows(config, Corpus.open(writer.path), bank)


def shown(rows, batch):
    """The bank's documents in each row, in order, and the record after them."""
    out = []
    for tokens in batch.data.tokens:
        parts, rest = [], tokens.tolist()
        assert rest.pop(0) == VOCAB.eos
        while True:
            row = next(
                (
                    n
                    for n in range(10)
                    if rest[: len(d := rows.bank.ids(n).tolist())] == d
                    and rest[len(d)] == VOCAB.break_
                ),
                None,
            )
            if row is None:
                break
            parts.append(row)
            rest = rest[len(d) + 1 :]
        record = next(n for n in range(5) if rest[: len(r := rows.corpus.ids(n).tolist())] == r)
        out.append((record, parts))
    return out


def test_each_kind_shows_its_documents_and_counts_the_query_only(rows):
    found = document_probes(rows, 4, ALL)
    assert found.keys() == {"none", "retrieved", "wrong", "right"}
    for kind, batches in found.items():
        assert len(batches) == (1 if kind == "right" else 2)
        rows_ = [each for batch in batches for each in shown(rows, batch)]
        # Five records fill two batches of four: the first ones come again.
        assert len({record for record, _ in rows_}) == (4 if kind == "right" else 5)
        for record, documents in rows_:
            subjects = {SUBJECTS[document % 5] for document in documents}
            if kind == "none":
                assert documents == []
            elif kind == "retrieved":
                assert documents == [record, (record + 1) % 5]
            elif kind == "right":
                # Never the first record's own image, which document 0 shows.
                assert documents == ([5] if record == 0 else [record, record + 5])
                assert subjects == {SUBJECTS[record]}
            else:
                assert documents[0] != record
        for batch in batches:
            codes = batch.data.targets >= VOCAB.first_image
            codes &= batch.data.targets < VOCAB.first_text
            weights = np.where(codes, batch.data.weights, 0).sum(1)
            assert weights.tolist() == [VOCAB.image_tokens] * 4


def test_wrong_documents_are_of_another_picture():
    """Five captions of an image, as in COCO, share its documents even where nothing names it."""
    pictures = [frozenset({name}) for name in "aaabb"]
    none = [frozenset()] * 5
    assert _others(none, pictures) == [3, 3, 3, 0, 0]
    subjects = [frozenset({name}) for name in "xyzyx"]
    assert _others(subjects, pictures) == [3, 4, 3, 0, 1]
    assert _others(none[:2], pictures[:2]) == [1, 0]
    assert _others(none[:1], pictures[:1]) == [0]


def test_processes_share_the_rows(rows):
    whole = document_probes(rows, 4, ALL)
    parts = [document_probes(rows, 4, slice(n, n + 2)) for n in (0, 2)]
    for kind, batches in whole.items():
        for number, batch in enumerate(batches):
            mine = [part[kind][number].data.tokens for part in parts]
            assert (np.concatenate(mine) == batch.data.tokens).all()


def test_a_row_holds_as_many_documents_as_fit(rows):
    longest = int(rows.corpus.lengths.max())
    tight = CorpusRows(
        dataclasses.replace(rows.config, context=longest + 2), rows.corpus, rows.bank
    )
    for batch in document_probes(tight, 4, ALL)["right"]:
        assert all(len(documents) <= 1 for _, documents in shown(rows, batch))


def test_nothing_is_asked_where_nothing_is_shown(rows):
    none = dataclasses.replace(rows.config, documents=RetrievalConfig(documents=0).documents)
    assert document_probes(CorpusRows(none, rows.corpus, rows.bank), 4, ALL) == {}
    cut = dataclasses.replace(rows.config, rows="stream")
    assert document_probes(CorpusRows(cut, rows.corpus, rows.bank), 4, ALL) == {}
