"""Many clients at once, on the shipped weights; `launch.bench serve` measures for longer."""

import contextlib

import pytest

from launch.bench.serve_clients import KINDS, Client, load, make_requests
from tests.serve.conftest import serving

SECONDS, CLIENTS = 20, 32


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
