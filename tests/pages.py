"""What every page of ours must be: well-formed, and whole without anything outside it."""

import html.parser
from pathlib import Path

_VOID = {"img", "meta", "link", "br"}


class _Checker(html.parser.HTMLParser):
    def __init__(self, folder: Path | None):
        super().__init__()
        self.open: list[str] = []
        self.folder = folder
        self.ids: set[str | None] = set()
        self.places: set[str] = set()

    def handle_starttag(self, name, attributes):
        if name not in _VOID:
            self.open.append(name)
        assert name != "script"
        named = dict(attributes)
        self.ids.add(named.get("id"))
        for link in {named[key] for key in ("src", "href") if key in named}:
            if link.startswith("#"):
                self.places.add(link[1:])
            elif not link.startswith("data:"):
                assert self.folder is not None, f"{link} is outside of the page"
                assert (self.folder / link).is_file(), f"{link} is not there"

    def handle_endtag(self, name):
        assert self.open.pop() == name


def require_sound(page: str, folder: Path | None = None) -> None:
    """`folder` is where the files lie that a page of several files links to."""
    checker = _Checker(folder)
    checker.feed(page)
    assert checker.open == []
    assert checker.places <= checker.ids
    assert "url(" not in page
    assert "http" not in page
