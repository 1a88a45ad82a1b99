"""Requests that no client means, over all routes: each is wrong in a way that its maker knows."""

import base64
import dataclasses
import io
import json
import random
import struct
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image

from cm3jax import testing

PNG = b"\x89PNG\r\n\x1a\n"
DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
HTML = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title><svg/onload=alert(1)>",
    "{{7*7}}${7*7}",
    "'; DROP TABLE documents; --",
    "\u202e\u0000\x1b[2J",
)
WRONG: dict[str, list[Any]] = {
    "prompt": [None, 1, [], {}, True, ["a"]],
    "n": [0, -1, 1.5, "x", [], {}, 1 << 70, None, 99],
    "seed": [-1, 1 << 32, "x", 1.5, []],
    "stream": ["x", 2, [], {}],
    "temperature": ["x", [], {}, -1, 1 << 200],
    "top_p": ["x", [], 0, 2, -1],
    "top_k": ["x", 1.5, -1, {}],
    "guidance": ["x", {}, [1], [1, 2, 3], [[1]], [1, 2]],
    "retrieve": [-1, "x", 1 << 60, None, [], 9],
    "floor": ["x", [], {}],
    "documents": ["x", {}, [1], [{"key": ""}], [{"nope": 1}], [{"key": 1}], [{}] * 9],
    "exclude": [1, "x", {}, [1], [""], [None], ["k"] * 1001],
    "weigh": [1, "x", [], {"a": "x"}, {"": 1}, {"a": 1e300}, {"a": None}],
    "model": [1, [], {}, "other"],
    "size": [1, [], "1x1", "x" * 300, "1024x1024"],
    "attribute": ["x", 3, []],
    "partial_images": [-1, 65, "x", 1.5],
    "response_format": ["url", 1, {}],
    "output_format": ["jpeg", 1],
    "background": ["transparent", 1],
}
"""Fields of an image's body, with values that none of them takes."""
WRONG_CHAT: dict[str, list[Any]] = {
    "messages": [[], None, "x", {}, [1], [{}], [{"role": "king", "content": "a"}]],
    "task": [1, [], "nothing", "caption", "masks"],
    "fields": [1, [], {"a": 1}],
    "max_tokens": [0, 1, "x", 1.5, -1],
    "max_completion_tokens": [0, "x", []],
    "stream_options": [1, "x", {"x": 1}],
    "frequency_penalty": [1, "x"],
    "logprobs": [True, "x"],
    **{name: WRONG[name] for name in ("n", "seed", "temperature", "guidance", "documents")},
}


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A request, and what is wrong with it."""

    kind: str
    method: str
    path: str
    content: bytes | Iterator[bytes] = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` grey pixels in few bytes, large ones without their lower part."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side + 1) * min(side, 128))
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def picture() -> bytes:
    """A PNG as it should be."""
    file = io.BytesIO()
    PIL.Image.fromarray(testing.pictures(1)[0]).save(file, "PNG")
    return file.getvalue()


class Mutator:
    """Makes requests; `paths` are names of files that no answer may show."""

    def __init__(self, seed: int, paths: list[str], most_bytes: int):
        self._rng, self._most = random.Random(seed), most_bytes
        self._paths = [*paths, "/etc/passwd", "../../etc/passwd", "/proc/self/environ", "~/.ssh/id"]
        self._kinds: list[Callable[[], Hostile]] = [
            self.truncated, self.wrong_type, self.unknown, self.deep, self.huge, self.path,
            self.html, self.broken_picture, self.form, self.key, self.route, self.odd_bytes,
            self.odd_number,
        ]  # fmt: skip

    def requests(self, count: int) -> Iterator[Hostile]:
        """Requests of all kinds in turn."""
        for number in range(count):
            yield self._kinds[number % len(self._kinds)]()

    def _route(self) -> tuple[str, dict[str, Any]]:
        """A route that takes JSON, and a body that it would answer."""
        content = "a red fox"
        return self._rng.choice(
            [
                (DRAW, {"prompt": content, "seed": 1}),
                (CHAT, {"messages": [{"role": "user", "content": content}], "seed": 1}),
            ]
        )

    def _post(self, kind: str, path: str, body: Any) -> Hostile:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Hostile(kind, "POST", path, content, {"content-type": "application/json"})

    def truncated(self) -> Hostile:
        """A body that ends early."""
        path, body = self._route()
        content = json.dumps(body).encode()
        return self._post("truncated", path, content[: self._rng.randrange(len(content))])

    def wrong_type(self) -> Hostile:
        """A field with a value of another type, or out of its range."""
        path, body = self._route()
        wrong = WRONG if path == DRAW else WRONG_CHAT
        name = self._rng.choice(sorted(wrong))
        return self._post("wrong type", path, {**body, name: self._rng.choice(wrong[name])})

    def unknown(self) -> Hostile:
        """A field that does not exist."""
        path, body = self._route()
        name = self._rng.choice(
            ["tempertaure", "__proto__", "constructor", "", *HTML, *self._paths]
        )
        return self._post("unknown field", path, {**body, name: self._rng.choice([1, None, {}])})

    def deep(self) -> Hostile:
        """Values within values."""
        path, body = self._route()
        depth = self._rng.choice([50, 1000, 50_000])
        open_, close = self._rng.choice([("[", "]"), ('{"a":', "}")])
        value = open_ * depth + "1" + close * depth * self._rng.choice([0, 1])
        name = self._rng.choice([*body, "documents", "exclude", "weigh"])
        content = json.dumps({**body, name: "HERE"}).replace('"HERE"', value)
        return self._post("deep", path, content.encode())

    def huge(self) -> Hostile:
        """More than the server takes: bytes, characters, values."""
        path, body = self._route()
        beyond = self._most + self._rng.randrange(1, 1000)
        which = self._rng.randrange(5)
        if which == 0:
            return self._post("huge", path, b" " * beyond)
        if which == 1:
            piece = b"x" * 10_000
            content = (piece for _ in range(beyond // len(piece) + 1))
            return Hostile("huge", "POST", path, content)
        if which == 2:
            return self._post(
                "huge", path, {**body, "exclude": [0] * self._rng.randrange(2000, 9000)}
            )
        if which == 3:
            return self._post("huge", DRAW, {"prompt": "fox " * self._rng.randrange(400, 20_000)})
        key = "k" * self._rng.randrange(1001, 50_000)
        return self._post("huge", path, {**body, "documents": [{"key": key}]})

    def path(self) -> Hostile:
        """A name of a file wherever a request could have one."""
        name = self._rng.choice(self._paths)
        name = (
            self._rng.choice(["", "file://", "http://127.0.0.1:1/", "data:image/png;base64,"])
            + name
        )
        image = {"type": "image_url", "image_url": {"url": name}}
        quoted = urllib.parse.quote(name, safe=self._rng.choice(["", "/:"]))
        return self._rng.choice(
            [
                self._post("path", DRAW, {"prompt": "a", "documents": [{"image": name}]}),
                self._post("path", DRAW, {"prompt": "a", "documents": [{"key": name}]}),
                self._post("path", DRAW, {"prompt": "a", "model": name}),
                self._post("path", CHAT, {"messages": [{"role": "user", "content": [image]}]}),
                self._post(
                    "path", CHAT, {"messages": [{"role": "user", "content": f"a <image:{name}>"}]}
                ),
                Hostile("path", "GET", f"/v1/documents/{quoted}"),
                Hostile("path", "DELETE", f"/v1/documents/{quoted}"),
                Hostile("path", "GET", f"/v1/models/{quoted}"),
                Hostile("path", "GET", f"/page/{quoted}"),
                Hostile("path", "GET", f"/{quoted}.."),
            ]
        )

    def html(self) -> Hostile:
        """HTML where an error repeats what was sent, and in captions and licences."""
        text = self._rng.choice(HTML)
        user = {"role": "user", "content": text}
        return self._rng.choice(
            [
                self._post("html", DRAW, {"prompt": "a", "model": text}),
                self._post("html", DRAW, {"prompt": text, "size": text}),
                self._post("html", DRAW, {"prompt": text, "documents": [{"key": text}]}),
                self._post(
                    "html", DRAW, {"prompt": "a", "documents": [{"text": "a", "licence": text}]}
                ),
                self._post("html", CHAT, {"messages": [user], "task": text}),
                self._post("html", CHAT, {"messages": [{**user, "role": text}]}),
                Hostile("html", "GET", f"/{urllib.parse.quote(text)}"),
                Hostile("html", "GET", f"/v1/documents/{urllib.parse.quote(text)}"),
            ]
        )

    def broken_picture(self) -> Hostile:
        """Images that are none, broken, or far larger than they look."""
        good = picture()
        content = self._rng.choice(
            [
                b"", PNG, b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                b"BM" + b"\0" * 60,
                bomb(self._rng.randrange(5000, 60_000)), bomb(64)[: self._rng.randrange(20, 60)],
                good[: self._rng.randrange(8, len(good) - 30)],
                self._rng.choice([PNG, b"\xff\xd8\xff", b"GIF89a"]) + self._rng.randbytes(200),
                zlib.compress(b"\0" * 100_000),
            ]
        )  # fmt: skip
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        part = {"type": "image_url", "image_url": {"url": url}}
        which = self._rng.randrange(4)
        if which == 0:
            return self._post("picture", CHAT, {"messages": [{"role": "user", "content": [part]}]})
        if which == 1:
            return self._post("picture", DRAW, {"prompt": "a", "documents": [{"image": url}]})
        files = {"image": content} if which == 2 else {"image": good, "mask": content}
        return self._form("picture", {"prompt": "a"}, files)

    def form(self) -> Hostile:
        """Forms that are none, lack the image, or hold what they should not."""
        good, name = picture(), self._rng.choice([*self._paths, *HTML])
        whole = self._form("form", {"prompt": "a"}, {"image": good})
        content = whole.content
        assert isinstance(content, bytes)
        field = self._rng.choice(sorted(set(WRONG) - {"prompt", "documents", "exclude", "weigh"}))
        head = whole.headers["content-type"]
        return self._rng.choice(
            [
                self._form("form", {"prompt": "a"}, {}),
                self._form("form", {}, {"image": good}),
                self._form("form", {"prompt": "a", "image": name}, {}),
                self._form("form", {"prompt": "a"}, {"image": good, "other": b"x"}),
                self._form("form", {"prompt": "a", name: "x"}, {"image": good}),
                self._form("form", {"prompt": "a", field: "<nothing>"}, {"image": good}),
                self._form("form", {"prompt": "a", "documents": "[{]"}, {"image": good}),
                self._form("form", {f"f{i}": "x" for i in range(70)}, {"image": good}),
                dataclasses.replace(whole, content=content[: len(content) // 3]),
                dataclasses.replace(whole, headers={"content-type": "multipart/form-data"}),
                dataclasses.replace(whole, headers={"content-type": head + "x"}),
                dataclasses.replace(whole, headers={"content-type": "text/html"}),
            ]
        )

    def key(self) -> Hostile:
        """A key that is not the server's."""
        path, body = self._route()
        wrong = self._rng.choice(["Bearer nobody", "Bearer", "", "Basic c2VjcmV0", "Bearer Secret"])
        asked = self._post("key", path, body)
        method, path = self._rng.choice(
            [("POST", path), ("DELETE", "/v1/documents/tiny-1"), ("GET", "/metrics")]
        )
        return dataclasses.replace(
            asked, method=method, path=path, headers={**asked.headers, "authorization": wrong}
        )

    def route(self) -> Hostile:
        """A route or a method that does not exist."""
        method, path = self._rng.choice(
            [
                ("GET", DRAW), ("PUT", EDIT), ("DELETE", CHAT), ("POST", "/metrics"), ("POST", "/"),
                ("PATCH", "/health"), ("GET", "/v1"), ("GET", "/.env"), ("GET", "/docs"),
                ("GET", "/openapi.json"), ("POST", "/v1/images/variations"), ("GET", "//"),
                ("OPTIONS", DRAW), ("TRACE", "/"), ("GET", "/page.js/../../engine.py"),
                ("GET", f"/{self._rng.randbytes(8).hex()}"),
            ]
        )  # fmt: skip
        return Hostile("route", method, path)

    def odd_bytes(self) -> Hostile:
        """Bytes that no JSON has, within JSON."""
        path, body = self._route()
        content = json.dumps(body).encode()
        at = content.index(b"red fox") + self._rng.randrange(7)
        odd = self._rng.choice(
            [b"\x00", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b'"', b"\n", b"\\ud800", b"\\x"]
        )
        return self._post("bytes", path, content[:at] + odd + content[at:])

    def odd_number(self) -> Hostile:
        """Numbers that are none, or too large for what they are."""
        path, body = self._route()
        name = self._rng.choice(["seed", "n", "top_k", "temperature", "guidance", "floor"])
        value = self._rng.choice(
            ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "01", "1_0", "+1", "--1"]
        )
        content = json.dumps({**body, name: "HERE"}).replace('"HERE"', value)
        return self._post("number", path, content.encode())

    def _form(self, kind: str, fields: dict[str, str], files: dict[str, bytes]) -> Hostile:
        mark, parts = f"x{self._rng.getrandbits(60):x}", []
        for name, value in fields.items():
            told = name.replace('"', "%22").replace("\0", "")
            parts.append((f'name="{told}"', value.encode()))
        for name, content in files.items():
            file = self._rng.choice([*self._paths, "x.png"])
            parts.append((f'name="{name}"; filename="{file}"', content))
        content = b"".join(
            f"--{mark}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + part + b"\r\n"
            for head, part in parts
        )
        kinds = {"content-type": f"multipart/form-data; boundary={mark}"}
        return Hostile(kind, "POST", EDIT, content + f"--{mark}--\r\n".encode(), kinds)
