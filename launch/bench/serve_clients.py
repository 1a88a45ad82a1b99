"""What clients of a server ask under load, and how they hear the answers; plain HTTP."""

import dataclasses
import functools
import http.client
import io
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import PIL.Image

from cm3jax.serve.drawing import ServedRequest
from cm3jax.serve.protocol import ChatBody, ImageBody
from cm3jax.serve.reading import BodyReader, Upload
from cm3jax.serve.replies import base64_png

BODIES = 60
"""Requests that differ; clients choose among them."""
KINDS = ("guided", "plain", "stream", "guided", "caption", "paint")
BROKEN = 0
"""In place of a status: the connection broke."""
_DRAW, _EDIT, _CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
_MARK = "a-part-of-the-form"


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request: its kind, its fields, and the files of a form."""

    kind: str
    fields: dict[str, Any]
    files: dict[str, bytes]

    @property
    def path(self) -> str:
        """Its route."""
        return {"caption": _CHAT, "paint": _EDIT}.get(self.kind, _DRAW)

    def read(self, reader: BodyReader) -> ServedRequest:
        """The request as the server reads it."""
        if self.kind == "caption":
            return reader.chat(ChatBody.model_validate(self.fields))
        body = ImageBody.model_validate(self.fields)
        if self.kind != "paint":
            return reader.picture(body)
        image, mask = (Upload(name, content) for name, content in self.files.items())
        return reader.edit(body, image, mask)

    @functools.cached_property
    def encoded(self) -> tuple[bytes, str]:
        """The body and its type."""
        if not self.files:
            return json.dumps(self.fields).encode(), "application/json"
        parts = [(f'name="{name}"', str(value).encode()) for name, value in self.fields.items()]
        parts += [(f'name="{name}"; filename="x.png"', file) for name, file in self.files.items()]
        content = b"".join(
            f"--{_MARK}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + part + b"\r\n"
            for head, part in parts
        )
        return content + f"--{_MARK}--\r\n".encode(), f"multipart/form-data; boundary={_MARK}"


@dataclasses.dataclass(frozen=True)
class Heard:
    """An answer, as a client heard it."""

    status: int
    seconds: float
    first_row: float | None
    """Seconds to a stream's first unfinished image."""
    said: tuple[Any, ...]
    """The codes or the text of each sample."""
    tokens: int


@dataclasses.dataclass(frozen=True)
class Unread:
    """An answer as it came; to read it takes time that a server would miss."""

    status: int
    seconds: float
    first_row: float | None
    """Seconds to a stream's first unfinished image."""
    lines: list[bytes]
    """The content, or the data of each event."""

    @property
    def heard(self) -> Heard:
        """What the answer says."""
        known = (self.status, self.seconds, self.first_row)
        # The last event is the image.
        found = json.loads(self.lines[-1]) if self.status == 200 and self.lines else {}
        if "codes" in found:
            return Heard(*known, (tuple(found["codes"]),), found["usage"]["output_tokens"])
        if "choices" in found:
            said = tuple(choice["message"]["content"] for choice in found["choices"])
            return Heard(*known, said, found["usage"]["completion_tokens"])
        if "data" in found:
            said = tuple(tuple(one["codes"]) for one in found["data"])
            return Heard(*known, said, found["usage"]["output_tokens"])
        return Heard(*known, (), 0)  # refused, failed, or ended before its image


def make_requests(size: int) -> list[Asked]:
    """Requests of all kinds, the same ones every time; images have `size` pixels a side."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    picture = noise.integers(0, 256, (size, size, 3), np.uint8)
    lower = np.zeros((size, size, 3), np.uint8)
    lower[size // 2 :] = 255
    url = f"data:image/png;base64,{base64_png(picture)}"
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    out = []
    for number in range(BODIES):
        kind = KINDS[number % len(KINDS)]
        fields: dict[str, Any] = {"seed": number, "temperature": rng.choice((0.1, 0.7, 1.0))}
        if kind == "caption":
            out.append(Asked(kind, {**fields, "messages": chat}, {}))
            continue
        colour, shape = rng.choice(("red", "blue")), rng.choice(("circle", "square"))
        fields["prompt"] = f"a large {colour} {shape} at {rng.choice(('a1', 'b3', 'd4'))} on sand"
        if kind == "paint":
            out.append(Asked(kind, fields, {"image": _png(picture), "mask": _png(lower)}))
            continue
        fields["guidance"] = 1.0 if kind == "plain" else rng.choice((2.0, 3.0))
        fields |= {"stream": True} if kind == "stream" else {"n": rng.choice((1, 2))}
        out.append(Asked(kind, fields, {}))
    return out


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Client:
    """One connection to a server, which is kept."""

    def __init__(self, url: str):
        self._link = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)

    def close(self) -> None:
        """Hang up, whatever is still to come."""
        self._link.close()

    def begin(self, asked: Asked) -> http.client.HTTPResponse:
        """Send a request; the answer's head."""
        content, kind = asked.encoded
        self._link.request("POST", asked.path, content, {"Content-Type": kind})
        return self._link.getresponse()

    def ask(self, asked: Asked) -> Heard:
        """Send a request and hear its whole answer."""
        return self.hear(asked).heard

    def hear(self, asked: Asked) -> "Unread":
        """Send a request and take its whole answer, to be read later."""
        began, first, lines = time.perf_counter(), None, []
        answer = self.begin(asked)
        if answer.status == 200 and "stream" in asked.fields:
            for line in answer:
                if line.startswith(b"data: "):
                    first = first or time.perf_counter() - began
                    lines.append(line[6:])
        else:
            lines.append(answer.read())
        return Unread(answer.status, time.perf_counter() - began, first, lines)

    def get(self, path: str) -> str:
        """The text of a page."""
        self._link.request("GET", path)
        return self._link.getresponse().read().decode()


def load(
    url: str, asked: Sequence[Asked], clients: int, seconds: float
) -> tuple[list[tuple[int, Heard]], float]:
    """Answers to clients that ask again and again, by the requests' numbers; the time they took."""
    for one in asked:
        _ = one.encoded  # once, and before the clock starts
    begin, heard = time.perf_counter(), []

    def ask(place: int) -> None:
        rng, client = random.Random(f"{place} {begin}"), Client(url)
        while time.perf_counter() - begin < seconds:
            number = rng.randrange(len(asked))
            try:
                one = client.hear(asked[number])
            except (OSError, http.client.HTTPException):
                one, client = Unread(BROKEN, 0.0, None, []), Client(url)
            heard.append((number, one))
            if one.status == 429:
                time.sleep(1)
        client.close()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    return [(number, one.heard) for number, one in heard], seconds
