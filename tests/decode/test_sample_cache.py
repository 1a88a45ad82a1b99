"""Decoding that was killed goes on with the samples that it had."""

import dataclasses
import json

import pytest

from cm3jax import testing
from cm3jax.config import DecodeConfig
from cm3jax.decode import loop
from cm3jax.decode.params import as_read
from cm3jax.decode.sample_cache import Journal
from tests.decode.test_loop import MODEL, VOCAB, text_request

FEW_ROWS = DecodeConfig(batch=4)


@pytest.fixture(scope="module")
def variables():
    return as_read(testing.decoder_variables(MODEL), MODEL.config.dtype)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that were really decoded."""
    seen, real = [], loop.decode_each

    def watched(model, variables, vocab, requests, *rest):
        seen.extend(request.prompt_id for request in requests)
        return real(model, variables, vocab, requests, *rest)

    monkeypatch.setattr(loop, "decode_each", watched)
    return seen


def collected(batches):
    return {
        (done.request, done.first + offset): (sample.ids.tolist(), *list(vars(sample).values())[1:])
        for finished in batches
        for done in finished
        for offset, sample in enumerate(done.samples)
    }


def test_only_what_is_missing_is_decoded_and_nothing_differs(variables, asked, tmp_path):
    requests = [text_request(number, 3 + number) for number in range(7)]

    def decode(journal, config=FEW_ROWS, seed=0):
        call = (MODEL, variables, VOCAB, requests, config, 2, seed)
        return journal.decode_each(*call)

    whole = collected(loop.decode_each(MODEL, variables, VOCAB, requests, FEW_ROWS, 2, 0))
    asked.clear()
    journal = Journal(tmp_path, "these weights")
    killed = decode(journal)
    had = next(killed)
    killed.close()
    asked.clear()
    again = list(decode(journal))
    assert again[0]
    assert {one.request for one in again[0]} == {one.request for one in had}
    assert set(asked) == set(range(7)) - {one.request for one in had}
    found = collected(again)
    assert found.keys() == whole.keys()
    assert {place: sample[0] for place, sample in found.items()} == {
        place: sample[0] for place, sample in whole.items()
    }
    asked.clear()
    assert collected(decode(journal)) == found
    assert asked == []
    for other in (
        decode(Journal(tmp_path, "other weights")),
        decode(journal, seed=1),
        decode(journal, dataclasses.replace(FEW_ROWS, temperature=0.5)),
    ):
        asked.clear()
        list(other)
        assert len(asked) == len(requests)


SAMPLE = {"ids": [1], "logprob": 0.0, "sampled": 1, "temperature": 1.0}
WRONG = [{"ids": [-1]}, {"ids": [2**40]}, {"ids": "1"}, {"ids": [1.5]}, {"logprob": "0"}]
DAMAGED = [
    *("[", '[{"request": 0}]', '{"a": 1}', "[[]]", "[" * 10**5),
    *(json.dumps([{"request": 0, "first": 0, "samples": [SAMPLE | one]}]) for one in WRONG),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_journal_is_decoded_again(variables, asked, tmp_path, caplog, content):
    requests = [text_request(number, 3 + number) for number in range(2)]
    call = (MODEL, variables, VOCAB, requests, FEW_ROWS)
    journal = Journal(tmp_path, "weights")
    whole = collected(journal.decode_each(*call))
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert collected(journal.decode_each(*call)) == whole
    assert f"passing over {file}, which is damaged" in caplog.text
    asked.clear()
    assert collected(journal.decode_each(*call)) == whole
    assert asked == []


def test_a_prompt_is_watched_under_its_own_number(variables, tmp_path):
    requests = [text_request(number, 5) for number in range(3)]
    call = (MODEL, variables, VOCAB, requests, DecodeConfig(batch=1))
    journal = Journal(tmp_path, "weights")
    killed = journal.decode_each(*call)
    next(killed)
    killed.close()
    seen = set()
    list(journal.decode_each(*call, watch=lambda request, sample, ids: seen.add(request)))
    assert seen == {1, 2}
