"""Server-sent events: images as their rows come, texts as their words do."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cm3jax.generation.answers import Generated
from cm3jax.sequence.vocab import Vocab
from cm3jax.serve import replies
from cm3jax.serve.protocol import ChatBody, ImageBody
from cm3jax.serve.studio import Gone, Session

LAST_SECONDS = 10.0
"""How long the end of a stream waits for the client to read."""
T = TypeVar("T")
Describe = Callable[[BaseException], dict[str, Any]]


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """The answer; raises `Gone` as soon as the client closes the connection."""
    task, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_closed(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        await _end(task, gone)


class EventStream(Response):
    """Sends events until there are no more or the client closes; then closes the session."""

    media_type = "text/event-stream"

    def __init__(
        self, session: Session, events: AsyncIterator[bytes], describe: Describe, seconds: float
    ):
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._session, self._events = session, events
        self._describe, self._seconds = describe, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        task: asyncio.Future | None = None
        gone: asyncio.Future | None = None
        try:
            await send(start)
            task, gone = (
                asyncio.ensure_future(self._all(send)),
                asyncio.ensure_future(_closed(receive)),
            )
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._session.close()
            await _end(*(each for each in (task, gone) if each is not None))

    async def _all(self, send: Send) -> None:
        async def put(content: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        last = b""
        try:
            async with asyncio.timeout(self._seconds):
                async for content in self._events:
                    await put(content)
        except Exception as error:  # the status is sent: an event tells
            last = event({"error": self._describe(error)}, "error")
        async with asyncio.timeout(LAST_SECONDS):  # a client that reads nothing takes nothing, ever
            if last:
                await put(last)
            await put(b"", more=False)


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def event(data: Any, name: str = "") -> bytes:
    """One event of a stream."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def image_events(
    session: Session, kind: str, body: ImageBody, vocab: Vocab
) -> AsyncIterator[bytes]:
    """Unfinished images, and each sample when it is done; `kind` begins the events' names."""
    question, grid = session.question, vocab.config.grid
    sent = dict.fromkeys(range(question.samples), 0)
    rows = dict(sent)

    def packed(sample: Generated) -> replies.Json:
        picture = replies.image_object(question, sample, session.drawing.effects, vocab)
        return {**picture, "usage": replies.image_usage(question, [sample], vocab)}

    while sent:
        await session.news()
        for number in list(sent):
            common = {"created_at": int(time.time()), "output_format": "png", "sample": number}
            if number in session.drawing.done:
                del sent[number]
                name = f"{kind}.completed"
                picture = await session.answer(number, packed)
                yield event({"type": name, **common, **picture}, name)
                continue
            now = session.rows(number)
            if now <= rows[number] or not _due(now / grid, sent[number], body.partial_images):
                continue
            name, index, rows[number] = f"{kind}.partial_image", sent[number], now
            sent[number] += 1
            unfinished = await session.partial(number, replies.base64_png)
            yield event(
                {
                    "type": name,
                    **common,
                    "partial_image_index": index,
                    "rows": now,
                    "b64_json": unfinished,
                },
                name,
            )


def _due(share: float, sent: int, most: int | None) -> bool:
    """Whether the next unfinished image is shown: at most `most`, evenly spread."""
    return most is None or (sent < most and share >= (sent + 1) / (most + 1))


async def chat_events(
    session: Session, name: str, model: str, body: ChatBody, vocab: Vocab
) -> AsyncIterator[bytes]:
    """Texts as they grow, then each sample's images and its end."""
    question = session.question
    told = dict.fromkeys(range(question.samples), "")
    samples = []
    for number in told:
        yield event(replies.chat_chunk(name, model, number, {"role": "assistant", "content": ""}))
    while told:
        await session.news()
        for number in list(told):
            if number not in session.drawing.done:
                more = _added(told[number], session.text(number))
                told[number] += more
                if more:
                    yield event(replies.chat_chunk(name, model, number, {"content": more}))
                continue
            sample, whole = await session.answer(number, lambda one: (one, replies.message(one)))
            samples.append(sample)
            delta = {**whole, "content": _rest(told.pop(number), whole["content"])}
            yield event(replies.chat_chunk(name, model, number, delta))
            about = replies.provenance(question, sample, session.drawing.effects, vocab)
            about["finish_reason"] = replies.finish_reason(question, sample, vocab)
            yield event(replies.chat_chunk(name, model, number, {}, **about))
    if body.stream_options is not None and body.stream_options.include_usage:
        usage = replies.chat_usage(question, samples)
        yield event({**replies.chat_chunk(name, model, 0, {}), "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _added(told: str, now: str) -> str:
    """What a growing text has more than was told; nothing while its end is half a character."""
    return "" if now.endswith("\ufffd") else _rest(told, now)


def _rest(told: str, now: str) -> str:
    return now[len(told) :] if now.startswith(told) else ""
