"""What every request passes: its host and key are checked, its errors get one sentence each."""

import hmac
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm3jax.errors import UserError
from cm3jax.io.folders import Held
from cm3jax.retrieval.milvus import Unanswered
from cm3jax.serve.engine import Busy, Closing
from cm3jax.serve.metrics import Metrics
from cm3jax.serve.page_files import PAGE
from cm3jax.serve.studio import Gone, Withdrawn

_log = logging.getLogger(__name__)
_OPEN = {*PAGE, "/health"}
"""Paths that need no key."""


class Guard:
    """Middleware: refuses foreign hosts, pages and wrong keys, and counts what is answered.

    `hosts` are the names by which browsers may call (the header `Host`): a page of another site,
    whose name was pointed at this machine, has another. Empty takes any.
    """

    def __init__(self, app: ASGIApp, key: str, hosts: frozenset[str], metrics: Metrics):
        self._app, self._key, self._hosts, self._metrics = app, key, hosts, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begin = 499, time.monotonic()  # closed by the client

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-content-type-options"] = "nosniff"
            await send(message)

        refused = self._refusal(scope)
        answer: ASGIApp = self._app if refused is None else refused
        try:
            await answer(scope, receive, watched)
        except Exception:
            status = 500  # its answer is made further out
            raise
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.answered(path, status, time.monotonic() - begin)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if self._hosts and host not in self._hosts:
            return _reply(421, "this server answers under its own name only.", "invalid_host")
        if scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site":
            return _reply(403, "pages of other sites can't ask this server.", "invalid_origin")
        if not self._key or scope["path"] in _OPEN:
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._key.encode()):
            return None
        return _reply(401, "the API key is wrong or missing.", "invalid_api_key")


def described(error: BaseException) -> dict[str, Any]:
    """An error as OpenAI's API has it; what is no user's error is logged, and not shown."""
    status, sentence = _status(error)
    if status == 500:
        _log.error("a request failed", exc_info=error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": sentence, "type": kind, "param": None, "code": status}


async def failure(request: Request, error: Exception) -> Response:
    """The answer to a request that raised an error."""
    said = described(error)
    if said["message"] in ("Not Found", "Method Not Allowed"):  # the router's own words
        said["message"] = f"there is no {request.method} {request.url.path[:100]} here."
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, Busy) else {}
    return JSONResponse({"error": said}, said["code"], headers)


def _status(error: BaseException) -> tuple[int, str]:
    match error:
        case HTTPException():
            return error.status_code, str(error.detail)
        case Unanswered():  # where it is, is none of a client's business
            _log.error("documents could not be searched: %s", error)
            return 503, "documents can't be searched at present; ask again later, or for none."
        case Held():
            return 503, "the bank is being written; send the request again later."
        case UserError():
            return 400, str(error)
        case Busy():
            return 429, str(error)
        case Closing():
            return 503, str(error)
        case Withdrawn():
            return 410, str(error)
        case TimeoutError():
            return 504, "the answer took too long and was given up; ask for less, or again later."
        case Gone() | ClientDisconnect():
            return 499, "the client closed the connection."
    return 500, "the server failed at this request; its log says how."


def _reply(status: int, sentence: str, code: str) -> Response:
    said: Mapping[str, Any] = {
        "message": sentence,
        "type": "invalid_request_error",
        "param": None,
        "code": code,
    }
    return JSONResponse({"error": said}, status)
