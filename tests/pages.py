"""What every page of ours must be: well-formed, and whole without anything outside it."""

import html.parser

_VOID = {"img", "meta", "link", "br"}


class _Checker(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, name, attributes):
        if name not in _VOID:
            self.open.append(name)
        assert name != "script"
        assert not [v for k, v in attributes if k in ("src", "href") and "data:" not in v]

    def handle_endtag(self, name):
        assert self.open.pop() == name


def require_sound(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert "url(" not in page
    assert "http" not in page
