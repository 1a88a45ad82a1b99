"""The files of the page, and the headers that keep it to itself."""

import dataclasses
from pathlib import Path

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data: blob:; connect-src 'self' data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # another version's modules don't fit
}


@dataclasses.dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: str
    kind: str
    """Its media type."""


def _read() -> dict[str, PageFile]:
    files = sorted((Path(__file__).parent / "page").iterdir())
    return {
        "/" if file.name == "index.html" else f"/{file.name}": PageFile(
            file.read_text("utf-8"), _KINDS[file.suffix]
        )
        for file in files
        if file.suffix in _KINDS
    }


PAGE = _read()
"""Each path of the page."""
