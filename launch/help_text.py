"""What `--help` prints: tyro's boxes with their lines filled, and the command's examples.

tyro breaks a line wherever a docstring does, and a word at its commas, but never the lines above
the boxes. The empty default of an option that need not be given is `(default: '')` to it.
"""

import itertools
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

_ROW = re.compile(r"│ (.*) │")
_FILLING = re.compile(r" {3,}[^ •]")
"""Begins a row that continues the text of the option above it."""
_ENTRY = re.compile(r"( *\S+(?: \S+)*)(?: {2,}(\S.*))?")
"""An option or a subcommand, and the first line of its text."""
_PROGRAMS = ("python -m launch.", "curl ")
_NO_DEFAULT = re.compile(r" *\(default:(?: ''| None|) ?\)$")
_MANY = re.compile(r"\[+(\w+) \[\1 \.\.\.\]+")
_BROKEN_WORD = re.compile(r"(`[^` ]+,) ([^` ]+`)")
"""A word of code that tyro broke at its comma, joined again: `half:8, 0.5`."""


def tidy(text: str) -> str:
    """The help of a command as tyro prints it, with filled lines and without empty defaults."""
    text = _MANY.sub(r"[\1 ...]", text)
    usage, _, rest = text.partition("\n")
    description, border, boxes = rest.partition("╭")
    if not border:  # tyro draws other boxes where the output is not UTF-8
        return text
    out = [usage, "", *_paragraphs(description)]
    for boxed, lines in itertools.groupby((border + boxes).splitlines(), _is_row):
        found = list(lines)
        out += _fill(found) if boxed else found
    return "\n".join(out) + "\n"


def examples(docstring: str | None, command: str) -> str:
    """The commands in the docstring of a command's module, each with the lines that belong to it.

    Only those that begin with `command`, `python -m launch.evaluate heldout`, if there are any.
    """
    paragraphs = map(textwrap.dedent, (docstring or "").split("\n\n"))
    code = "\n".join(text.rstrip() for text in paragraphs if text.startswith(_PROGRAMS))
    shown = re.split(r"\n(?! )", code)
    own = [example for example in shown if f"{example} ".startswith(f"{command} ")]
    lines = "\n".join(own or shown).splitlines()
    return "\n".join(["examples:", *(f"  {line}" for line in lines)]) + "\n" if lines else ""


def _paragraphs(text: str) -> Iterator[str]:
    """The description, each paragraph filled and with an empty line below it."""
    width = shutil.get_terminal_size().columns
    for paragraph in re.split(r"\n{2,}", text.strip()):
        yield from textwrap.wrap(paragraph, width, break_on_hyphens=False)
        yield ""


def _is_row(line: str) -> bool:
    return _ROW.fullmatch(line) is not None


def _fill(lines: Sequence[str]) -> Iterator[str]:
    """The rows of one box, each option's text filled."""
    rows = [found[1] for line in lines if (found := _ROW.fullmatch(line))]
    width = len(rows[0])
    for row in _rows([row.rstrip() for row in rows], width):
        yield f"│ {row:{width}} │"


def _rows(rows: Sequence[str], width: int) -> Iterator[str]:
    entries: list[tuple[str, list[str]]] = []
    column = 0  # where texts begin
    for row in rows:
        if entries and (not row or _FILLING.match(row)):
            entries[-1][1].append(row.strip())
            column = column or len(row) - len(row.lstrip())
        elif found := _ENTRY.fullmatch(row):
            entries.append((found[1], [found[2]] if found[2] else []))
            column = column or (found.start(2) if found[2] else 0)
    for name, text in entries:
        yield from _entry(_MANY.sub(r"[\1 ...]", name), "\n".join(text), column, width)


def _entry(name: str, text: str, column: int, width: int) -> Iterator[str]:
    """The rows of an option: its text in a column, beside the name if that is short."""
    filled: list[str] = []
    joined = _BROKEN_WORD.sub(r"\1\2", text.replace("\n\n", "\0").replace("\n", " "))
    for paragraph in _NO_DEFAULT.sub("", joined).split("\0"):
        wrapped = textwrap.wrap(paragraph, width - column, break_on_hyphens=False)
        filled += ["", *wrapped] if filled else wrapped
    if filled and len(name) < column - 1:
        yield f"{name:{column}}{filled.pop(0)}"
    else:
        yield name
    for line in filled:
        yield " " * column * bool(line) + line
