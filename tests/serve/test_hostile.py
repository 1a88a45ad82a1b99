"""Requests that no client means: each gets a 4xx with one sentence, and the server goes on."""

import base64
import functools
import json
import os
import socket
import sys
import threading

import httpx
import pytest

from cm3jax.errors import UserError
from cm3jax.serve.limits import Limits
from cm3jax.serve.protocol import ChatBody, ImageUrl
from tests.serve.conftest import client_of, serving
from tests.serve.mutator import PNG, Mutator, bomb, picture


def refused(answer, *statuses):
    assert answer.status_code in (statuses or (400,)), answer.text
    sentence = answer.json()["error"]["message"]
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 600
    assert "Traceback" not in sentence
    return sentence


def bodies():
    """JSON that is none, or of the wrong shape, for every route that takes it."""
    deep = "[" * 100_000
    yield from (b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", deep.encode(), b"{" * 5000)
    yield b'{"prompt": "a", "seed": 1e400}'
    yield b'{"prompt": "a", "temperature": NaN}'
    yield b'{"prompt": "\\ud800"}'
    fine = (("prompt", "x" * 100), ("documents", []), ("exclude", []), ("weigh", {}))
    for name in ("prompt", "n", "seed", "retrieve", "documents", "exclude", "weigh", "guidance"):
        for value in ([], {}, "x" * 100, -1, 1 << 80, [[]], {"a": {}}, [None]):
            if (name, value) not in fine:
                yield json.dumps({"prompt": "a", name: value}).encode()
    yield json.dumps({"prompt": "a", "exclude": ["tiny-1"] * 1001, "retrieve": 1}).encode()
    yield json.dumps({"prompt": "a", "weigh": {"tiny-1": 1e300}, "retrieve": 1}).encode()
    for path in (
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/x.png",
        "../../x",
        "data:,x",
    ):
        yield json.dumps({"prompt": "a", "documents": [{"image": path}]}).encode()
        yield json.dumps({"prompt": "a", "documents": [{"key": path}]}).encode()
        yield json.dumps({"prompt": "a", "model": path}).encode()


def chats():
    image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    for content in (
        [image],
        "a <image:/etc/passwd>",
        "<infill>",
        "a <mask>",
        "",
        [],
        [{"type": "text"}],
        [{"type": "nothing", "text": "a"}],
        [{"type": "text", "text": " "}],
    ):
        yield {"messages": [{"role": "user", "content": content}]}
    yield {"messages": []}
    yield {"messages": [{"role": "king", "content": "a"}]}
    yield {"messages": [{"role": "user", "content": "a"}], "task": "<script>alert(1)</script>"}
    yield {"messages": [{"role": "user", "content": "a"}], "task": "caption"}
    yield {"messages": [{"role": "user", "content": "a"}], "task": "science", "fields": {"x": "y"}}
    yield {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}


def test_bodies_that_make_no_sense(server, client):
    count = 0
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for content in bodies():
            refused(http.post("/v1/images/generations", content=content), 400, 404)
            count += 1
        for body in chats():
            refused(http.post("/v1/chat/completions", json=body))
            count += 1
        for method, path in (
            ("GET", "/v1/images/generations"),
            ("POST", "/metrics"),
            ("GET", "/../../etc/passwd"),
            ("GET", "/v1/documents/../../etc/passwd"),
            ("GET", "/v1/models/%2e%2e%2f"),
            ("DELETE", "/v1/documents/nobody"),
        ):
            refused(http.request(method, path), 400, 404, 405)
    assert count > 100
    assert client.images.generate(prompt="a red fox").data[0].b64_json


def test_a_chat_is_bounded_as_a_whole(server):
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    pictures = [{"type": "image_url", "image_url": {"url": url}}] * 9
    texts = [{"type": "text", "text": "x" * 5000}] * 5
    long = {"task": "science", "fields": {"options": "x" * 20_001}}
    for content, more, said in (
        (texts, {}, "a text has 25000 characters"),
        (pictures, {}, "more than 8 images"),
        ("a", long, "a text has 20001 characters"),
    ):
        body = ChatBody.model_validate({"messages": [{"role": "user", "content": content}], **more})
        with pytest.raises(UserError, match=said):
            server.studio.reader.chat(body)
    assert len(ImageUrl(url="x" * (2 << 20)).url) == 2 << 20  # a body's bytes are its only bound


def test_a_key_of_any_length_is_told_in_brief(server):
    url = f"{server.url}/v1/documents/{'y' * 20_000}"
    for answer in (httpx.get(url, timeout=60), httpx.delete(url, timeout=60)):
        assert "has no document 'yyy" in refused(answer)
    body = {"prompt": "a", "documents": [{"key": "y" * 1000}]}
    refused(httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60))


def test_many_wrong_values_are_not_told_one_by_one(server):
    many = json.dumps({"prompt": "a", "exclude": [0] * 200_000})
    url = f"{server.url}/v1/images"
    refused(httpx.post(f"{url}/generations", content=many, timeout=60), 413)
    form = {"prompt": "a", "exclude": many}
    refused(httpx.post(f"{url}/edits", data=form, files={"image": picture()}, timeout=60), 413)


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", PNG, bomb(64)[:60], bomb(30_000), bomb(5_000), b"<svg/>", b"GIF89a"],
)
def test_uploads_that_are_no_pictures_or_too_large(server, content):
    form = {"prompt": "a red fox"}
    edits = f"{server.url}/v1/images/edits"
    first = httpx.post(edits, files={"image": ("x.png", content)}, data=form, timeout=60)
    said = refused(first)
    # By its head: nothing is decoded, which would be a sentence about a file that is cut off.
    assert content != bomb(5_000) or "has 5000x5000 pixels, more than" in said
    good = {"image": ("../../x.png", picture()), "mask": ("m.png", content)}
    refused(httpx.post(edits, files=good, data=form, timeout=60))
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    refused(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60))


def test_forms_that_are_none(server):
    edits = f"{server.url}/v1/images/edits"
    refused(httpx.post(edits, json={"prompt": "a"}), 415)
    head = {"content-type": "multipart/form-data"}
    refused(httpx.post(edits, content=b"x", headers=head))
    refused(
        httpx.post(
            edits, content=b"x", headers={"content-type": f"{head['content-type']}; boundary=y"}
        )
    )
    refused(httpx.post(edits, data={"prompt": "a"}, files={"other": ("x", b"x")}))
    refused(httpx.post(edits, data={"image": "/etc/passwd", "prompt": "a"}, files={"mask": b"x"}))
    two = [("image", ("a.png", picture())), ("image[]", ("b.png", picture()))]
    refused(httpx.post(edits, data={"prompt": "a"}, files=two))
    refused(httpx.post(edits, data={"prompt": "a", "n": "many"}, files={"image": picture()}))


def test_bodies_too_large(generator):
    with serving(generator, Limits(upload_bytes=1000)) as server:
        url = f"{server.url}/v1/images/generations"
        refused(httpx.post(url, content=b"x" * 1001, timeout=60), 413)
        refused(httpx.post(url, content=(b"x" * 100 for _ in range(11)), timeout=60), 413)


def test_bodies_too_slow(generator):
    with serving(generator, Limits(body_seconds=0.2)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
            )
            assert b"408" in slow.recv(100)
        with client_of(server) as client:
            assert client.models.list().data


_OPENED: list[tuple[str, bool]] | None = None
"""Files opened while a test looks, and whether to write."""


def _audit(name, args):
    if _OPENED is None:
        return
    if name in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        _OPENED.append((name, True))
    elif not args or not isinstance(args[0], str | bytes):
        return
    elif name == "open":
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        _OPENED.append((os.fsdecode(args[0]), bool((args[2] or 0) & writes)))
    elif name in ("os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.chmod"):
        _OPENED.append((os.fsdecode(args[0]), True))


@functools.cache  # a hook stays for the life of the process
def _listen():
    sys.addaudithook(_audit)


@pytest.fixture
def opened(monkeypatch):
    """What this process opens from now on."""
    _listen()
    found: list[tuple[str, bool]] = []
    monkeypatch.setattr(f"{__name__}._OPENED", found)
    return found


def tree(folder):
    """Everything below a folder, with sizes and times."""
    stats = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def fault_of(answer, secret):
    """What is wrong with the answer to a hostile request; empty where it is as it should be."""
    if not 400 <= answer.status_code < 500:
        return "no 4xx"
    if secret in answer.text:
        return "shows a file"
    heads = ("application/json", "nosniff")
    if (answer.headers["content-type"], answer.headers["x-content-type-options"]) != heads:
        return "may be taken for a page"
    sentence = answer.json()["error"]["message"]
    one = sentence.endswith(".") and "\n" not in sentence and len(sentence) < 600
    return "" if one else "no sentence"


def test_500_hostile_requests(generator, tmp_path, opened):
    """Each is refused with a sentence, shows no file, opens and writes none outside the server's
    folders, and leaves the server as it was."""
    secret = "canary-8f1c0d"
    canary = tmp_path / "canary.txt"
    canary.write_text(secret)
    (tmp_path / "canary.png").write_bytes(picture())
    names = [str(canary), str(tmp_path / "canary.png"), os.path.relpath(canary)]
    most = 1 << 20
    draw = {"prompt": "a red fox", "seed": 1}
    with serving(generator, Limits(upload_bytes=most), key="secret") as server:
        headers = {"authorization": "Bearer secret"}
        with httpx.Client(headers=headers, timeout=120) as http:

            def drawn():
                answer = http.post(f"{server.url}/v1/images/generations", json=draw)
                assert answer.status_code == 200
                return answer.json()["data"][0]["codes"]

            before, files = drawn(), tree(tmp_path)
            opened.clear()
            kinds: dict[str, int] = {}
            wrong = []
            for asked in Mutator(7, names, most).requests(520):
                kinds[asked.kind] = kinds.get(asked.kind, 0) + 1
                answer = http.request(
                    asked.method,
                    f"{server.url}{asked.path}",
                    content=asked.content,
                    headers=asked.headers,
                )
                if fault := fault_of(answer, secret):
                    wrong.append((fault, asked, answer.status_code, answer.text))
            assert not wrong, "\n".join(str(each)[:600] for each in wrong[:8])
            assert min(kinds.values()) >= 40
            assert len(kinds) == 13
            assert http.get(f"{server.url}/health").json() == {"status": "ok"}
            assert drawn() == before
            assert server.studio.engine.load["open"] == 0
    home = str(generator.retriever.bank.path.parent)
    written = [path for path, writes in opened if writes and not path.startswith(home)]
    assert not [path for path in written if "__pycache__" not in path]
    hidden = (str(tmp_path), "/etc/passwd", "/etc/shadow", "/proc/self/environ")
    assert not [path for path, _ in opened if path.startswith(hidden)]
    assert tree(tmp_path) == files


@pytest.mark.slow  # it waits for them
def test_slow_bodies_hold_up_nobody(generator):
    """Forty connections that send a byte now and then, while others draw."""
    with serving(generator, Limits(body_seconds=2.0)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        url = f"{server.url}/v1/images/generations"
        assert httpx.post(url, json={"prompt": "a red fox"}, timeout=60).status_code == 200
        answers: list[bytes] = []

        def drip():
            with socket.create_connection((host, int(port)), timeout=60) as slow:
                slow.sendall(
                    b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n"
                    b"Content-Type: multipart/form-data; boundary=y\r\n\r\n-"
                )
                answer = b""
                while b"did not arrive" not in answer and (more := slow.recv(4096)):
                    answer += more
                answers.append(answer)

        threads = [threading.Thread(target=drip) for _ in range(40)]
        for thread in threads:
            thread.start()
        assert httpx.post(url, json={"prompt": "a red fox"}, timeout=60).status_code == 200
        for thread in threads:
            thread.join()
        assert len(answers) == 40
        assert all(b" 408 " in answer and b"did not arrive" in answer for answer in answers)
