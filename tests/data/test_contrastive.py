import dataclasses

import numpy as np
import pytest

from cm3jax.data.contrastive import NO_SUBJECT, CaptionedRecords, Couples, CoupleStream
from cm3jax.data.pipeline import Position
from cm3jax.data.readers.items import BadRecord
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
    return CaptionedRecords(_source(), text_tokenizer(), experiment().clip)


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


def test_partners_share_a_look_where_records_name_looks():
    looks = [("a, large",), ("a, small", "b, small"), (), ("b, large",), (), ("a, large",)]
    named = [dataclasses.replace(r, looks=own) for r, own in zip(_source(), looks, strict=False)]
    found = CaptionedRecords(named, text_tokenizer(), experiment().clip)
    assert found.partnered == 2  # 0 and 5; the others of a are none of the same look
    drawn = {epoch: found.partners(np.arange(6), 0, epoch).tolist() for epoch in range(20)}
    assert {(row[0], row[5], row[1]) for row in drawn.values()} == {(5, 0, 1)}


def _captions(pictures: list[int], subject: str = "a") -> CaptionedRecords:
    """Records of one subject, each a caption of the image of that number."""
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    source = [
        RawRecord(str(i), (f"caption {i % 4}", images[picture]), "pair", (subject,), "s", "l")
        for i, picture in enumerate(pictures)
    ]
    return CaptionedRecords(source, text_tokenizer(), experiment().clip)


def test_a_partner_has_another_picture_than_the_record():
    """As in COCO, where each image has five captions: the own one would teach nothing."""
    pictures = [0, 1, 0, 2, 1, 0]
    records = _captions(pictures)
    every = np.arange(len(pictures))
    drawn = np.stack([records.partners(every, 0, epoch) for epoch in range(100)], axis=1)
    for record, own in enumerate(pictures):
        assert set(drawn[record].tolist()) == {
            i for i, other in enumerate(pictures) if other != own
        }
    couples = _first(_stream(records, batch=6))
    numbers = np.asarray(pictures)[couples.records]
    assert (numbers[:, 0] != numbers[:, 1]).all()
    np.testing.assert_array_equal(couples.same[..., 0], numbers)
    np.testing.assert_array_equal(couples.same[..., 1], couples.records % 4)


def test_the_partner_of_a_single_picture_is_another_caption():
    records = _captions([3, 3, 3])
    every = np.arange(3)
    drawn = np.stack([records.partners(every, 0, epoch) for epoch in range(50)], axis=1)
    assert [set(row.tolist()) for row in drawn] == [{1, 2}, {0, 2}, {0, 1}]


def test_records_with_a_partner_are_counted(records):
    assert records.partnered == 5  # 0, 1, 3, 5 and 6; c, d and e have one record each


def test_a_partner_depends_only_on_its_record(records):
    every = np.arange(len(SUBJECTS))
    together = records.partners(every, 3, 5)
    assert records.partners(every[6:7], 3, 5).tolist() == together[6:7].tolist()


def _stream(records, batch=4, **options):
    base = experiment()
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, batch=batch))
    dropout = config.retrieval.query_dropout
    return CoupleStream(records, config.data, config.clip, config.seed, dropout, **options)


def _first(stream, position=None) -> Couples:
    return next(stream.batches(position or Position())).data


def test_rows_hold_both_documents(records):
    couples = _first(_stream(records, batch=8))
    assert sorted(couples.records[:, 0].tolist()) == list(range(8))
    np.testing.assert_array_equal(couples.images, records.pictures.held[couples.records])
    np.testing.assert_array_equal(couples.subjects, records.subjects[couples.records])
    assert couples.texts.shape[:2] == (8, 2)
    assert (couples.subjects[couples.records[:, 0] == 2] == NO_SUBJECT).all()


def test_some_asking_texts_lack_pieces_and_partners_none(records):
    stream = _stream(records, batch=8)
    end = stream.clip.text_vocab - 1
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
    records = CaptionedRecords(_source(24), text_tokenizer(), experiment().clip)
    assert records.pictures.held.shape == (8, 16, 16, 3)


class _Dirty(list):
    """A source whose fourth record can't be read."""

    def __getitem__(self, number):
        if number == 3:
            raise BadRecord("3.png", "it is empty")
        return super().__getitem__(number)


def test_pictures_that_are_read_as_needed_give_the_same_batches(records):
    streamed = CaptionedRecords(_source(), text_tokenizer(), experiment().clip, in_memory=1000)
    assert streamed.pictures.held is None
    both = [_stream(part, batch=3).batches(Position()) for part in (records, streamed)]
    for _, held, read in zip(range(7), *both, strict=False):
        assert (held.fingerprint, held.next) == (read.fingerprint, read.next)
        for name in ("records", "subjects", "texts", "images"):
            np.testing.assert_array_equal(getattr(held.data, name), getattr(read.data, name))


def test_a_broken_record_is_left_out_and_named():
    records = CaptionedRecords(_Dirty(_source()), text_tokenizer(), experiment().clip)
    assert len(records) == len(records.pictures.held) == 7
    notes = _stream(records).notes
    assert notes[1] == "4 of 7 records have a partner of their subject."
    assert notes[0] == "left out 1 of 8 records: 3.png: it is empty"
    streamed = CaptionedRecords(_Dirty(_source()), text_tokenizer(), experiment().clip, in_memory=0)
    every = np.arange(7)
    np.testing.assert_array_equal(streamed.pictures.take(every), records.pictures.held)


def test_a_source_without_pairs_is_refused():
    texts = [dataclasses.replace(record, segments=("only text",)) for record in _source()]
    with pytest.raises(UserError, match="no record with a text and an image"):
        CaptionedRecords(texts, text_tokenizer(), experiment().clip)
