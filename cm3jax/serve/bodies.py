"""Bodies of requests, read under limits of size and time, then checked against their models."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from cm3jax.serve.limits import Limits
from cm3jax.serve.protocol import refusal
from cm3jax.serve.reading import Upload

AnyBody = TypeVar("AnyBody", bound=BaseModel)
_MOST_VALUES = 100_000
"""Values in the JSON of a body: pydantic takes a kilobyte to say what is wrong with one."""


async def read_json_body(request: Request, model: type[AnyBody], limits: Limits) -> AnyBody:
    """A body of JSON as its model; `HTTPException` with one sentence for anything else."""
    content = await _content(request, limits)
    _require_few_values(content.count(b","))
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise HTTPException(400, refusal(error, model)) from None


async def read_form(
    request: Request, model: type[AnyBody], files: tuple[str, ...], limits: Limits
) -> tuple[AnyBody, dict[str, Upload]]:
    """A multipart form: its fields as their model, and its uploads of these names, one of each."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "the body is no form; send multipart/form-data with the image.")
    content = await _content(request, limits)

    async def whole():
        yield content

    parser = MultiPartParser(
        request.headers, whole(), max_files=8, max_fields=64, max_part_size=limits.upload_bytes
    )
    parser.spool_max_size = limits.upload_bytes  # nothing is written to disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(400, f"the form can't be read ({str(error)[:100]}).") from None
    try:
        fields, uploads = await _sorted(form, files)
    finally:
        await form.close()
    texts = ("".join(value) for value in fields.values())
    _require_few_values(sum(text.count(",") for text in texts))
    try:
        return model.model_validate(fields), uploads
    except ValidationError as error:
        raise HTTPException(400, refusal(error, model)) from None


def _require_few_values(commas: int) -> None:
    if commas > _MOST_VALUES:
        raise HTTPException(
            413, f"the body has more than {_MOST_VALUES} commas; send less at once."
        )


async def _sorted(
    form: FormData, files: tuple[str, ...]
) -> tuple[dict[str, str | list[str]], dict[str, Upload]]:
    """Fields and uploads of a form; `name[]` is one of several."""
    fields: dict[str, str | list[str]] = {}
    uploads: dict[str, Upload] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if isinstance(value, UploadFile) or name in files:
            if name not in files or name in uploads or isinstance(value, str):
                raise HTTPException(
                    400, f"{name[:40]!r} is not one file; send {' and '.join(files)}."
                )
            uploads[name] = Upload(name, await value.read())
        elif key.endswith("[]"):
            before = fields.get(name, [])
            fields[name] = [*before, value] if isinstance(before, list) else value
        else:
            fields[name] = value
    return fields, uploads


async def _content(request: Request, limits: Limits) -> bytes:
    """The bytes of a body: not too many, and not too slowly."""
    too_large = HTTPException(
        413, f"the body has more than {limits.upload_bytes} bytes; send less at once."
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.upload_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.upload_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not arrive within {limits.body_seconds:g} s; send it again."
        ) from None
    return b"".join(parts)
