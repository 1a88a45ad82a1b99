"""Tables of measured figures in the pages of the documentation, and the files of results."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cm3jax.errors import UserError
from cm3jax.io.files import require_replaceable
from cm3jax.io.texts import decode_text, read_regular


def require_results(path: str, is_ours: Callable[[dict[str, Any]], bool]) -> None:
    """Raise `UserError`, before anything is measured, where a file of results would replace one
    that is none: `is_ours` is asked about the object in it."""

    def are_results(content: bytes) -> bool:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and is_ours(found)

    require_replaceable(path, are_results, "the results")


def text_of(path: str) -> str:
    """The page that a table is to be written into; empty if there is none, and `UserError` where
    it is no text."""
    if not Path(path).exists():
        return ""
    try:
        return decode_text(read_regular(path))
    except ValueError as error:
        raise UserError(f"--page {path} is no page of text ({error}); give another.") from None


def with_table(page: str, head: str, lines: Iterable[str]) -> str:
    """The page with a table in place of the one that begins with the same `head`, or at its end.

    `head` is the table's first two lines; each of `lines` ends with a newline, too.
    """
    before, _, rest = page.partition(head)
    return before + head + "".join(lines) + re.sub(r"\A(\|.*\n)*", "", rest)
