"""Requests that no client means: each gets a 4xx with one sentence, and the server goes on."""

import base64
import io
import json
import socket
import struct
import zlib

import httpx
import pytest

from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.serve.limits import Limits
from cm3jax.serve.protocol import ChatBody, ImageUrl
from tests.serve.conftest import client_of, serving

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(side):
    """A PNG of `side` x `side` grey pixels in few bytes, large ones without their lower part."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side + 1) * min(side, 128))
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


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
        (pictures, {}, "more than 8 pictures"),
        ("a", long, "a text has 20001 characters"),
    ):
        body = ChatBody.model_validate({"messages": [{"role": "user", "content": content}], **more})
        with pytest.raises(UserError, match=said):
            server.studio.reader.chat(body)
    assert len(ImageUrl(url="x" * (2 << 20)).url) == 2 << 20  # a body's bytes are its only bound


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


def picture():
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(testing.pictures(1)[0]).save(file, "PNG")
    return file.getvalue()


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
