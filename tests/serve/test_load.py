"""Many clients at once, on the shipped weights."""

import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from cm3jax.generation import loading
from tests.serve.conftest import serving

WEIGHTS = Path(__file__).resolve().parents[2] / "experiments/miniature/weights/decoder"
SECONDS, CLIENTS, BODIES = 20, 32, 40


def body(number):
    rng = random.Random(number)
    place, colour = rng.choice(("a1", "b3", "d4")), rng.choice(("red", "blue", "green"))
    return {
        "prompt": f"a large {colour} circle at {place} on sand",
        "seed": number,
        "guidance": rng.choice((1, 2, 3)),
        "temperature": rng.choice((0.7, 1.0)),
        "n": rng.choice((1, 2)),
    }


@pytest.mark.slow
def test_answers_under_load_are_those_of_requests_by_themselves():
    with serving(loading.load(WEIGHTS), slots=16) as server:
        url = f"{server.url}/v1/images/generations"

        def codes(http, number):
            answer = http.post(url, json=body(number))
            assert answer.status_code == 200, answer.text
            return [one["codes"] for one in answer.json()["data"]]

        with httpx.Client(timeout=600) as http:
            alone = [codes(http, number) for number in range(BODIES)]
        found, end = [], time.monotonic() + SECONDS

        def client(place):
            rng = random.Random(place)
            with httpx.Client(timeout=600) as http:
                while time.monotonic() < end:
                    number = rng.randrange(BODIES)
                    found.append((number, codes(http, number)))

        threads = [threading.Thread(target=client, args=(place,)) for place in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.studio.engine.load["open"] == 0
    same = [one == other for n, got in found for one, other in zip(got, alone[n], strict=True)]
    assert len(found) >= CLIENTS
    assert sum(same) / len(same) >= 0.99
