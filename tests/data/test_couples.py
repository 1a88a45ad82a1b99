import dataclasses

import numpy as np
import pytest

from cm3jax.data.couples import NO_SUBJECT, Couples, CoupleStream, Records
from cm3jax.data.pipeline import Position
from cm3jax.data.sources import RawRecord
from cm3jax.errors import UserError
from cm3jax.testing import experiment, text_tokenizer

SUBJECTS = [("a",), ("a", "b"), (), ("b",), ("c",), ("a",), ("b", "d"), ("e",)]


def _source(side: int = 16) -> list[RawRecord]:
    rng = np.random.default_rng(0)
    return [
        RawRecord(
            key=str(i),
            segments=(
                f"a red fox number {i}",
                rng.integers(0, 256, (side, side, 3)).astype(np.uint8),
            ),
            kind="pair",
            subjects=subjects,
            source="s",
            licence="CC0-1.0",
        )
        for i, subjects in enumerate(SUBJECTS)
    ]


@pytest.fixture(scope="module")
def records():
    return Records(_source(), text_tokenizer(), experiment().clip)


def test_partners_share_a_subject_and_are_all_drawn(records):
    every = np.arange(len(SUBJECTS))
    drawn = np.stack([records.partners(every, 0, epoch) for epoch in range(200)], axis=1)
    for record, subjects in enumerate(SUBJECTS):
        others = {
            other
            for other, theirs in enumerate(SUBJECTS)
            if other != record and set(subjects) & set(theirs)
        }
        found = set(drawn[record].tolist())
        if record == 6:  # its subject d has no other record, so it sometimes has no partner
            others |= {6}
        assert found == (others or {record})


def test_a_partner_depends_on_its_record_alone(records):
    every = np.arange(len(SUBJECTS))
    together = records.partners(every, 3, 5)
    assert records.partners(every[6:7], 3, 5).tolist() == together[6:7].tolist()


def _stream(records, batch=4, **options):
    base = experiment()
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, batch=batch))
    return CoupleStream(config, records, **options)


def _first(stream, position=None) -> Couples:
    return next(stream.batches(position or Position())).data


def test_rows_hold_both_documents(records):
    couples = _first(_stream(records, batch=8))
    assert sorted(couples.records[:, 0].tolist()) == list(range(8))
    np.testing.assert_array_equal(couples.images, records.images[couples.records])
    np.testing.assert_array_equal(couples.subjects, records.subjects[couples.records])
    assert couples.texts.shape[:2] == (8, 2)
    assert (couples.subjects[couples.records[:, 0] == 2] == NO_SUBJECT).all()


def test_some_asking_texts_lack_pieces_and_partners_none(records):
    stream = _stream(records, batch=8)
    end = stream.experiment.clip.text_vocab - 1
    lengths = {i: len(text) + 1 for i, text in enumerate(records.texts)}
    shorter = []
    batches = stream.batches(Position())
    for _ in range(8):
        couples = next(batches).data
        for (asking, partner), texts in zip(couples.records, couples.texts, strict=True):
            assert (texts[1] == end).argmax() == lengths[int(partner)]
            shorter.append((texts[0] == end).argmax() < lengths[int(asking)])
    assert 0.05 < np.mean(shorter) < 0.5


def test_a_stream_continues_anywhere(records):
    batches = _stream(records, batch=3).batches(Position())
    held = [next(batches) for _ in range(6)]
    again = _first(_stream(records, batch=3), held[3].next)
    for name in ("records", "subjects", "texts", "images"):
        np.testing.assert_array_equal(getattr(again, name), getattr(held[4].data, name))


def test_processes_share_the_global_batch(records):
    whole = _first(_stream(records))
    shares = [_first(_stream(records, process_index=i, process_count=2)) for i in range(2)]
    np.testing.assert_array_equal(whole.texts, np.concatenate([share.texts for share in shares]))


def test_pictures_of_another_size_are_fitted():
    assert Records(_source(24), text_tokenizer(), experiment().clip).images.shape == (8, 16, 16, 3)


def test_a_source_without_pairs_is_refused():
    texts = [dataclasses.replace(record, segments=("only text",)) for record in _source()]
    with pytest.raises(UserError, match="no record with a text and a picture"):
        Records(texts, text_tokenizer(), experiment().clip)
