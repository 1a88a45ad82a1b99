"""A real server on loopback, in a thread of the test process."""

import contextlib
import threading
import time
from pathlib import Path

import openai
import pytest
import uvicorn

from cm3jax import testing
from cm3jax.generation import loading
from cm3jax.serve.app import Server, make_app
from cm3jax.serve.limits import Limits

WEIGHTS = Path(__file__).resolve().parents[2] / "experiments/miniature/weights/decoder"


class Listening(Server):
    """A server that knows its own address."""

    url: str


@contextlib.contextmanager
def serving(generator, limits=None, slots=4, name="tiny", **guard):
    """A server of this generator, with its address in `url`."""
    server = Listening(generator, name, slots, limits or Limits())
    config = uvicorn.Config(
        make_app(server, **guard), port=0, log_level="error", timeout_graceful_shutdown=60
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not runner.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host, port = runner.servers[0].sockets[0].getsockname()
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        runner.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        assert not server.studio.engine.alive


def client_of(server, key="none", **options):
    """OpenAI's own client of a server."""
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 120, **options}
    )


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    return loading.load(testing.write_chain(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="session")
def server(generator):
    with serving(generator) as running:
        yield running


@pytest.fixture(scope="session")
def shipped():
    """The shipped decoder, which draws images of four rows."""
    return loading.load(WEIGHTS)


@pytest.fixture
def client(server):
    with client_of(server) as out:
        yield out
