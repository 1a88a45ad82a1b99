"""Tables of measured figures in the pages of the documentation."""

import re
from collections.abc import Iterable


def with_table(page: str, head: str, lines: Iterable[str]) -> str:
    """The page with a table in place of the one that begins with the same `head`, or at its end.

    `head` is the table's first two lines; each of `lines` ends with a newline, too.
    """
    before, _, rest = page.partition(head)
    return before + head + "".join(lines) + re.sub(r"\A(\|.*\n)*", "", rest)
