"""Files as other people's tools write them: UTF-8 with or without a byte order mark, lines that end
at line ends only, and names that may lead to a pipe or a device."""

import os
import re
import stat
import unicodedata
from typing import Any

from etils import epath

MOST_BYTES = 1 << 28
"""Bytes of the largest image file, archive member or line of text that is read."""
LONGEST_REASON = 300
"""Characters of a reason that is written to reports and manifests."""

_MARK = "\ufeff"
_LINE_END = re.compile(r"\r?\n")
_OVERRIDES = (
    "\u202d\u202e"  # they make text read backwards, which honest right-to-left text never needs
)
# Control characters that Unicode counts as white space: form feed, next line and the like.
_ODD_SPACE = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


def decode_text(content: bytes) -> str:
    """The text of UTF-8 bytes, without a byte order mark in front; `ValueError` for other bytes."""
    try:
        return content.decode().removeprefix(_MARK)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"is not UTF-8 (byte {byte:02X} at {error.start})") from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end at `\\n` or `\\r\\n` and at nothing else.

    `str.splitlines` also cuts at form feeds, U+0085 and U+2028, which are found inside captions.
    """
    lines = _LINE_END.split(text)
    return lines[:-1] if not lines[-1] else lines


def clean_text(text: str) -> str:
    """A text without white space or byte order mark around it, as prompts have none.

    Raises `ValueError` if it holds half a surrogate pair or control characters that are not white
    space.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("its text holds half a surrogate pair or is not UTF-8") from None
    text = _ODD_SPACE.sub(" ", text).strip().removeprefix(_MARK).strip()
    for character in text:
        if character in _OVERRIDES or (
            unicodedata.category(character) == "Cc" and character not in "\t\n\r"
        ):
            raise ValueError(f"its text holds the control character U+{ord(character):04X}")
    return text


def require_unicode(name: str) -> None:
    """Raise `ValueError` for a name that is not Unicode: bytes of another encoding in a file's
    name, or half a surrogate pair. Neither can be written or printed."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"its name {brief(printable(name))} is not UTF-8") from None


def printable(text: str) -> str:
    """A text with escapes for what is not Unicode in it."""
    return text.encode(errors="backslashreplace").decode()


def brief(value: Any, most: int = 60) -> str:
    """A value for a message: its `repr`, cut after `most` characters."""
    if isinstance(value, str | bytes) and len(value) > most:
        value = value[: most + 1]  # a repr of megabytes would be made only to be cut
    shown = repr(value)
    return shown if len(shown) <= most + 2 else f"{shown[:most]}…"


def shorten(text: str, most: int = LONGEST_REASON) -> str:
    """A text on one line, cut after `most` characters."""
    text = " ".join(text[: 2 * most].split())
    return text if len(text) <= most else f"{text[:most]}…"


def read_regular(path: epath.PathLike, most: int | None = MOST_BYTES) -> bytes:
    """The content of a file that `require_regular` lets pass."""
    require_regular(path, most)
    return epath.Path(path).read_bytes()


def require_regular(path: epath.PathLike, most: int | None = None) -> None:
    """Raise unless a path, local or in a bucket, leads to a file that may be read.

    Raises `ValueError`, with the reason, for a folder, a pipe, a device, and for a file of more
    than `most` bytes (None: of any size); `OSError` if it is missing or unreadable.
    """
    path = epath.Path(path)
    if _is_local(path):
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"it is {_kind(about.st_mode)}, not a file")
        size = about.st_size
    else:
        size = path.stat().length
    if most is not None and size > most:
        raise ValueError(f"it has {size} bytes, more than {most}")


def file_state(path: epath.PathLike) -> tuple[int, ...]:
    """Numbers that change when a file is written again; raises `OSError` if it is missing."""
    path = epath.Path(path)
    if _is_local(path):
        about = os.stat(path)
        return about.st_size, about.st_mtime_ns, about.st_ino
    about = path.stat()
    return about.length, about.mtime


def leads_out(path: epath.Path, folder: epath.Path) -> bool:
    """Whether a file is a link to something outside of the folder.

    Links among the folders on the way are the user's own and are followed.
    """
    if not _is_local(path) or not os.path.islink(path):
        return False
    target, home = os.path.realpath(path), os.path.realpath(folder)
    near = os.path.realpath(path.parent)
    return not any(target.startswith(f"{inside}{os.sep}") for inside in (home, near))


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for test, name in kinds.items() if test(mode)), "a device")
