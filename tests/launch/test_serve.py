"""The server's command: its options, and a process that answers until it is told to stop."""

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn

from cm3jax import testing
from cm3jax.errors import UserError
from launch.serve import Options, _bound

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \nsecond line\n", "is empty"),
        (b"\xff\xfe\n", "no client can send"),
        ("schlüssel".encode(), "no client can send"),
        (b"a\x00b", "no client can send"),
    ],
)
def test_a_key_that_no_client_can_send_is_refused(tmp_path, content, said):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UserError, match=said):
        _ = Options("run", api_key_file=str(tmp_path / "key")).key


def test_the_key_is_the_first_line(tmp_path):
    (tmp_path / "key").write_bytes(b" sk-1 2 \r\nsecond line")
    assert Options("run", host="0.0.0.0", api_key_file=str(tmp_path / "key")).key == "sk-1 2"
    with pytest.raises(UserError, match="give --api-key-file FILE too"):
        Options("run", host="0.0.0.0")


def test_an_address_that_is_taken_raises_user_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = uvicorn.Config("none", port=taken.getsockname()[1])
        with pytest.raises(UserError, match=r"can't listen at 127\.0\.0\.1:\d+ \(.* in use\)"):
            _bound(config)


@pytest.mark.slow  # it starts jax in a process of its own
def test_it_serves_until_it_is_told_to_stop(tmp_path):
    run = testing.write_chain(tmp_path)
    call = [sys.executable, "-m", "launch.serve", str(run), "--port", "0"]
    call += ["--limits.seconds", "inf"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(call, cwd=ROOT, text=True, **pipes)
    try:
        said = process.stdout.readline()
        assert said.startswith("serving decoder at http://127.0.0.1:"), process.stderr.read()
        port = int(said.rpartition(":")[2])
        for path in ("/health", "/v1/models"):
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            asked.request("GET", path)
            answer = asked.getresponse()
            assert answer.status == 200
            told = json.load(answer)
            asked.close()
        assert told["data"][0]["id"] == "decoder"
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
