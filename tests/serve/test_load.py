"""Many clients at once, on the shipped weights; `launch.bench serve` measures for longer."""

import contextlib

import pytest

from launch.bench.serve_clients import KINDS, Client, Unread, load, make_requests
from tests.serve.conftest import serving

SECONDS, CLIENTS = 20, 32


@pytest.mark.parametrize(
    ("status", "last", "said"),
    [
        (200, b'{"codes": [1, 2], "usage": {"output_tokens": 2}}', ((1, 2),)),
        (200, b'{"rows": 1, "b64_json": ""}', ()),
        (200, b'{"error": {"code": 504}}', ()),
        (503, b"Service Unavailable", ()),
    ],
    ids=["whole", "cut off", "failed", "no JSON"],
)
def test_an_answer_without_its_image_says_nothing(status, last, said):
    """A measurement of minutes does not end by one that is broken."""
    heard = Unread(status, 1.0, None, [last]).heard
    assert (heard.status, heard.said, heard.tokens) == (status, said, sum(map(len, said)))


@pytest.mark.slow
def test_answers_under_load_are_those_of_requests_by_themselves(shipped):
    asked = make_requests(shipped.image.config.image_size)
    with serving(shipped, slots=16) as server:
        with contextlib.closing(Client(server.url)) as client:
            alone = [client.ask(one) for one in asked]
        heard, _ = load(server.url, asked, CLIENTS, SECONDS)
        assert server.studio.engine.load["open"] == 0
    assert {one.status for one in alone} == {200}
    assert {one.status for _, one in heard} <= {200, 429}
    good = [(number, one) for number, one in heard if one.status == 200]
    assert len(good) >= CLIENTS
    assert {asked[number].kind for number, _ in good} == set(KINDS)
    same = [
        mine == other
        for number, one in good
        for mine, other in zip(one.said, alone[number].said, strict=True)
    ]
    assert sum(same) / len(same) >= 0.99
