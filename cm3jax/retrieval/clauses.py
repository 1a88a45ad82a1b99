"""A text cut into clauses, so that each may ask for a document of its own.

One vector of a text that names two things is between them, nearest to documents of neither. The
paper asks with whole captions (section 2.1); `retrieval.clauses` asks clause by clause.
"""

import re

_BORDERS = re.compile(r"\s*[,;]\s*|\s+and\s+")


def clauses(text: str) -> list[str]:
    """The parts of a text between commas, semicolons and "and"; the text itself if it has one."""
    return [part for part in _BORDERS.split(text.strip()) if part] or [text]
