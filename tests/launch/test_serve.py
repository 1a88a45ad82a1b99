"""The server's command: its options, and a process that answers until it is told to stop."""

import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
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


def _served(run):
    """A server's process, and its port."""
    call = [sys.executable, "-m", "launch.serve", str(run), "--port", "0"]
    call += ["--limits.seconds", "inf"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(call, cwd=ROOT, text=True, **pipes)
    said = process.stdout.readline()
    assert "at http://127.0.0.1:" in said, process.stderr.read()
    return process, int(said.rpartition(":")[2])


def _asked(port, path, body=None):
    """The status and the text that a server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json"}
    connection.request("POST" if body else "GET", path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.slow  # it starts jax in a process of its own
def test_it_serves_until_it_is_told_to_stop(tmp_path):
    process, port = _served(testing.write_chain(tmp_path))
    try:
        assert _asked(port, "/health")[0] == 200
        status, told = _asked(port, "/v1/models")
        assert (status, json.loads(told)["data"][0]["id"]) == (200, "decoder")
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.mark.slow  # it starts jax in a process of its own
def test_a_second_signal_gives_up_what_runs_with_a_sentence():
    process, port = _served(ROOT / "experiments/miniature/weights/decoder")
    asked = {"prompt": "a large red circle at b3 on sand", "n": 4, "attribute": True}
    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        answers = [
            clients.submit(_asked, port, "/v1/images/generations", {**asked, "seed": seed})
            for seed in range(4)
        ]
        try:
            while "cm3jax_requests_open 4.0" not in _asked(port, "/metrics")[1]:
                time.sleep(0.01)
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            told = [answer.result(timeout=60) for answer in answers]
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert {status for status, _ in told} == {503}
    assert all("given up" in json.loads(answer)["error"]["message"] for _, answer in told)
    assert (errors, process.returncode) == ("", 130)
