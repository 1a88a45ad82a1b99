"""The routes of the server."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cm3jax.errors import UserError
from cm3jax.generation.answers import Generated
from cm3jax.generation.generator import Generator
from cm3jax.serve import replies, streams
from cm3jax.serve.bodies import read_form, read_json_body
from cm3jax.serve.drawing import ServedRequest
from cm3jax.serve.engine import Busy, Closing
from cm3jax.serve.guard import Guard, described, failure
from cm3jax.serve.limits import Limits
from cm3jax.serve.metrics import Metrics
from cm3jax.serve.page_files import PAGE, PAGE_HEADERS, PageFile
from cm3jax.serve.protocol import ChatBody, ImageBody, Options
from cm3jax.serve.studio import Gone, Session, Studio, Withdrawn


class Server:
    """The parts that routes share: a studio, a name for the model, figures."""

    def __init__(self, generator: Generator, name: str, slots: int, limits: Limits):
        self.name, self.limits, self.metrics = name, limits, Metrics()
        self.studio = Studio(generator, slots, limits, self.metrics.first_rows.observe)
        self.metrics.watch(self.studio.engine)

    async def answer(
        self,
        request: Request,
        body: Options,
        read: Callable[[], ServedRequest],
        pack: Callable[[Session, list[Generated]], replies.Json],
    ) -> Response:
        """The reply that `pack` makes of the samples that a body asks for, unless the client goes
        before."""
        self._require_model(body)

        async def whole() -> replies.Json:
            session = await self._open(read)
            try:
                return await session.finish(lambda samples: pack(session, samples))
            finally:
                session.close()

        async with asyncio.timeout(self.limits.seconds):
            return JSONResponse(await streams.unless_gone(request, whole()))

    async def stream(
        self,
        request: Request,
        body: Options,
        read: Callable[[], ServedRequest],
        events: Callable[[Session], AsyncIterator[bytes]],
    ) -> Response:
        """A stream of events about the samples that a body asks for."""
        self._require_model(body)
        async with asyncio.timeout(self.limits.seconds):
            session = await streams.unless_gone(request, self._open(read))
        return streams.EventStream(session, events(session), described, self.limits.seconds)

    async def images(
        self, request: Request, body: ImageBody, kind: str, read: Callable[[], ServedRequest]
    ) -> Response:
        """Images, at once or as a stream."""
        vocab = self.studio.generator.vocab
        if body.stream:
            return await self.stream(
                request, body, read, lambda each: streams.image_events(each, kind, body, vocab)
            )

        def pack(session: Session, samples: list[Generated]) -> replies.Json:
            return replies.images_reply(session.question, samples, session.drawing.effects, vocab)

        return await self.answer(request, body, read, pack)

    async def chat(self, request: Request, body: ChatBody) -> Response:
        """An answer to messages, at once or as a stream."""
        name, vocab = f"chatcmpl-{secrets.token_hex(12)}", self.studio.generator.vocab

        def read() -> ServedRequest:
            return self.studio.reader.chat(body)

        if body.stream:
            what = (name, self.name, body, vocab)
            return await self.stream(
                request, body, read, lambda each: streams.chat_events(each, *what)
            )

        def pack(session: Session, samples: list[Generated]) -> replies.Json:
            shown = (session.question, samples, session.drawing.effects, vocab)
            return replies.chat_reply(name, self.name, *shown)

        return await self.answer(request, body, read, pack)

    def _require_model(self, body: Options) -> None:
        if body.model not in (None, "", self.name):
            raise HTTPException(
                404, f"there is no model {body.model[:100]!r}; this server has {self.name!r}."
            )

    async def _open(self, read: Callable[[], ServedRequest]) -> Session:
        """Read a body as a question, and send it to the engine."""
        return self.studio.open(await self.studio.read(read))


def make_app(server: Server, key: str = "", hosts: frozenset[str] = frozenset()) -> FastAPI:
    """The application; when it ends it finishes what is running.

    `key` is the API key that requests must bring, if any; `hosts` as in `Guard`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.studio.close)

    app = FastAPI(
        title="cm3jax", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.add_middleware(Guard, key=key, hosts=hosts, metrics=server.metrics)
    known = (HTTPException, UserError, Busy, Closing, Withdrawn, Gone, ClientDisconnect)
    for kind in (*known, TimeoutError, Exception):
        app.add_exception_handler(kind, failure)
    _add_answers(app, server)
    _add_state(app, server)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """The page, which loads nothing from elsewhere and runs no script but its own."""

    def add(path: str, file: PageFile) -> None:
        @app.get(path)
        async def page() -> Response:
            return Response(file.content, media_type=file.kind, headers=PAGE_HEADERS)

    for path, file in PAGE.items():
        add(path, file)


def _add_answers(app: FastAPI, server: Server) -> None:
    """The routes that draw and answer."""
    reader, limits = server.studio.reader, server.limits

    async def room() -> None:
        """Called before a body is read: what would be refused need not arrive first."""
        server.studio.require_room()

    rooms = [Depends(room)]

    @app.post("/v1/images/generations", dependencies=rooms)
    async def generations(request: Request) -> Response:
        body = await read_json_body(request, ImageBody, limits)
        return await server.images(request, body, "image_generation", lambda: reader.picture(body))

    @app.post("/v1/images/edits", dependencies=rooms)
    async def edits(request: Request) -> Response:
        body, files = await read_form(request, ImageBody, ("image", "mask"), limits)
        if "image" not in files:
            raise UserError("there is no image to edit; send one as the file `image`.")
        image, mask = files["image"], files.get("mask")
        return await server.images(
            request, body, "image_edit", lambda: reader.edit(body, image, mask)
        )

    @app.post("/v1/chat/completions", dependencies=rooms)
    async def completions(request: Request) -> Response:
        return await server.chat(request, await read_json_body(request, ChatBody, limits))


def _add_state(app: FastAPI, server: Server) -> None:
    """The routes that tell what there is, and take documents out of it."""
    studio, began = server.studio, int(time.time())

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != server.name:
            raise HTTPException(404, f"there is no model {name[:100]!r}; it is {server.name!r}.")
        return JSONResponse(_model())

    def _model() -> replies.Json:
        return {"id": server.name, "object": "model", "created": began, "owned_by": "cm3jax"}

    @app.get("/v1/documents/{key:path}")
    async def document(key: str) -> Response:
        meta, shown = await studio.document(key)
        image = shown.image
        return JSONResponse(
            {
                "key": meta.key,
                "text": shown.text,
                "b64_json": image
                if image is None
                else await studio.work(replies.base64_png, image),
                "source": meta.source,
                "licence": meta.licence,
            }
        )

    @app.delete("/v1/documents/{key:path}")
    async def take_down(key: str) -> Response:
        await studio.take_down(key)
        return JSONResponse({"key": key, "object": "document", "deleted": True})

    @app.get("/health")
    async def health() -> Response:
        alive = studio.engine.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")
