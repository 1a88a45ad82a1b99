"""Pages, stored results and contact sheets that show documents of a bank, at a takedown.

A page of ours says which documents an element shows, a stored result which one a cell shows, and
`samples.jsonl` which ones a sample saw, each by a mark that no other document has:

    <div class="cell" data-document="0123456789abcdef">…</div>
    {"label": …, "picture": …, "text": …, "correct": …, "document": "0123456789abcdef"}

What shows a document that is taken out is blanked in its place, and a contact sheet is deleted;
all else stays as it is. A sample that was drawn with the document shows none: it stays, and is
named. Whoever opened a bank before a removal and writes a page after it looks at the list of what
was removed when the page is written (`blank_written`).
"""

import functools
import json
import operator
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from cm3jax.io.files import write_atomic
from cm3jax.io.texts import read_regular
from cm3jax.retrieval.bank_files import BankDocument, mark_of
from cm3jax.retrieval.removed import Removed

GONE = "taken out of the bank"
"""The text in place of a document that was shown."""
SHEET = "contact.png"
"""The sheet of a folder with `samples.jsonl`: it shows the documents of the samples."""
_SAMPLES = "samples.jsonl"
_SHOWS = re.compile(r'<(\w+)\b[^<>]*\bdata-document="([0-9a-f ]+)"[^<>]*>')
_CELL = {"label", "picture", "text", "correct", "document"}
_UNMARKED = re.compile(
    r'<div class="cell(?: wide)?">(?:<img [^<>]*>)?'
    r"<span>(?:document|[^<>]+, -?\d\.\d\d|-?\d\.\d{3} [^<>]*)</span>|"
    r'"label": "[^"]+, -?\d\.\d\d"'
)
"""What earlier versions, which wrote no marks, called a document."""
_HALF = re.compile(r"(?s)\..+\.(html|json)\.[0-9a-f]{8}\.part")
_HALF_SHEET = re.compile(rf"\.{re.escape(SHEET)}\.[0-9a-f]{{8}}\.part")
"""Halves of pages and sheets that a killed process left."""
_LONGEST = 60.0
"""Seconds after which nobody writes such a half any more: all of it is written at once."""
_CHUNK = re.compile(r"drawn-\d{5}\.json")
"""What `launch.evaluate coco_fid` notes of the images that it draws."""
_BATCH = re.compile(r"bad-batch-\d+-process-\d+\.npz")
"""What training keeps of a batch whose loss is NaN or infinite: ids, documents' among them."""
_NAMED = 8
_SKIPPED = {"checkpoints", "tensorboard"}


def blank_pages(
    removed: Removed, folders: Sequence[epath.PathLike], say: Callable[[str], None]
) -> list[str]:
    """Blank what shows a document that is taken out, in all files below some folders.

    `say` gets a line for every file that was changed, and for every one where something is left to
    do. A file that cannot be written stops no other one: those files are returned, each with the
    reason, as `PATH (reason)`. Links are not followed; what cannot be read is somebody else's.
    """
    failed: list[str] = []
    for folder in folders if removed else ():
        for path in sorted(_files(Path(folder))):
            try:
                for line in _blank(path, removed):
                    say(line)
            except OSError as error:
                shows = path.parent / SHEET if path.name == _SAMPLES else path
                failed.append(f"{shows} ({error.strerror})")
    return failed


def blank_written(path: epath.PathLike, banks: Iterable[epath.PathLike]) -> list[str]:
    """Blank in a file what was taken out of these banks; returns the lines about it.

    To be called when the file is written: a removal looks through all pages once more after it has
    saved its list, so that one of both sees the other.
    """
    removed = _removed_from(banks)
    return list(_blank(Path(path), removed)) if removed else []


def any_saw_removed(samples: Iterable[dict[str, Any]], banks: Iterable[epath.PathLike]) -> bool:
    """Whether lines of samples name a document that was taken out of these banks."""
    removed = _removed_from(banks)
    return any(_saw(sample, removed) for sample in samples)


def _removed_from(banks: Iterable[epath.PathLike]) -> Removed:
    listed = (Removed.of(bank) for bank in banks if os.fspath(bank))
    return functools.reduce(operator.or_, listed, Removed())


def _blank(path: Path, removed: Removed) -> Iterator[str]:
    """Blank one file, and yield the lines about it; raises `OSError` if it cannot be written."""
    if path.name == _SAMPLES:
        yield from _blank_samples(path, removed)
    elif _CHUNK.fullmatch(path.name):
        yield from _name_drawn(path, removed)
    elif _HALF.fullmatch(path.name):
        yield from _delete_half(path, removed)
    elif _BATCH.fullmatch(path.name):
        yield f"{path}: rows of a batch that ended a training, which may hold them; delete it"
    elif path.suffix in (".html", ".json"):
        yield from _blank_page(path, set(removed.marks))


def _files(folder: Path) -> Iterator[Path]:
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if name not in _SKIPPED]
        yield from (Path(place, name) for name in names if not Path(place, name).is_symlink())


def _content(path: Path) -> bytes:
    """What is in a file; nothing where it can't be read, or is a pipe that would be waited for."""
    try:
        return read_regular(path, None)
    except (OSError, ValueError):
        return b""


def _blank_page(path: Path, marks: set[str]) -> Iterator[str]:
    try:
        text = _content(path).decode()
    except ValueError:
        return
    if path.suffix == ".html":
        new, count = blank_html(text, marks)
    else:
        new, count = blank_json(text, marks)
    if count:
        write_atomic(path, new)
        yield f"{path}: {count} {'places' if count > 1 else 'place'} blanked that showed them"
        if any((path.parent / "samples").glob("[0-9]*/record-*.png")):
            yield (
                f"{path.parent / 'samples'}: its folders of steps are kept, and have what the "
                "training drew, maybe with them; delete those that must go"
            )
    if "data-document=" not in text and '"document":' not in text and _UNMARKED.search(text):
        yield (
            f"{path}: made by an earlier version and may show them; delete it, or draw or measure "
            "it again"
        )


def _delete_half(path: Path, removed: Removed) -> Iterator[str]:
    content = _content(path)
    if any(mark.encode() in content for mark in removed.marks) and _is_left(path):
        path.unlink(missing_ok=True)
        yield f"{path}: deleted, half of a page that showed them, which a killed process left"


def _is_left(path: Path) -> bool:
    """Whether a half is a dead process's; who still writes one looks at the list afterwards."""
    try:
        return time.time() - path.stat().st_mtime > _LONGEST
    except OSError:
        return False


def noted(document: BankDocument) -> dict[str, str]:
    """What is noted of a document that a sample saw, so that a takedown finds the sample."""
    about = {name: getattr(document, name) for name in ("key", "source", "licence")}
    return about | {"mark": mark_of(document)}


def blank_html(text: str, marks: set[str]) -> tuple[str, int]:
    """A page of ours without what shows one of the marks, and how many elements that were."""
    parts, at, count = [], 0, 0
    for found in _SHOWS.finditer(text):
        if found.start() < at or not marks & set(found[2].split()):
            continue
        end = _end(text, found[1], found.end())
        if text[found.end() : end] != GONE:
            parts += [text[at : found.end()], GONE]
            at, count = end, count + 1
    return "".join([*parts, text[at:]]), count


def _end(text: str, name: str, start: int) -> int:
    """Where the content of an element ends that begins at `start`; the page's end if it is cut."""
    depth = 1
    for found in re.compile(rf"<(/?){name}\b").finditer(text, start):
        depth += -1 if found[1] else 1
        if not depth:
            return found.start()
    return len(text)


def blank_json(text: str, marks: set[str]) -> tuple[str, int]:
    """A stored result without the cells that show one of the marks, and how many those were."""
    if not any(mark in text for mark in marks):
        return text, 0
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text, 0
    count = sum(_blank_cell(cell) for cell in _cells(value) if cell["document"] in marks)
    return json.dumps(value, indent=2) + "\n", count


def _cells(value: Any) -> Iterator[dict[str, Any]]:
    """All cells of figures in a value of JSON."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and one.keys() == _CELL:
            yield one
        elif isinstance(one, dict | list):
            waiting += one.values() if isinstance(one, dict) else one


def _blank_cell(cell: dict[str, Any]) -> bool:
    """Whether there was something to blank."""
    blank = {"label": GONE, "picture": None, "text": "", "correct": None}
    changed = any(cell[name] != value for name, value in blank.items())
    cell.update(blank)
    return changed


def _blank_samples(path: Path, removed: Removed) -> Iterator[str]:
    """Delete the contact sheet beside samples that saw what is taken out, and name these."""
    drawn = []
    for line in _content(path).split(b"\n"):
        try:
            sample = json.loads(line)
            if _saw(sample, removed):
                drawn.append(str(sample["name"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # it is cut, or another program's
    if not drawn:
        return
    yield _kept(path.parent, drawn)
    for half in path.parent.iterdir():
        if _HALF_SHEET.fullmatch(half.name) and _is_left(half):
            half.unlink(missing_ok=True)
    if (path.parent / SHEET).exists():
        (path.parent / SHEET).unlink()
        yield f"{path.parent / SHEET}: deleted, since it showed them; launch.generate makes another"


def _name_drawn(path: Path, removed: Removed) -> Iterator[str]:
    """Name the images of captions that were drawn with what is taken out.

    Earlier versions noted only keys, which no source and no licence is found by.
    """
    try:
        notes = json.loads(_content(path))
        drawn = [f"{int(one):012d}.png" for one, note in notes.items() if _drew(note, removed)]
        unknown = any(note["documents"] and "shown" not in note for note in notes.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    if drawn:
        yield _kept(path.parent, drawn)
    if unknown and (removed.sources or removed.licences):
        yield (
            f"{path}: made by an earlier version, which noted no source or licence of what its "
            "images were drawn with; delete their folder, or draw them again"
        )


def _drew(note: dict[str, Any], removed: Removed) -> bool:
    if "shown" in note:
        return _saw({"documents": note["shown"]}, removed)
    return bool({*removed.keys} & {*note["documents"]})


def _kept(folder: Path, drawn: Sequence[str]) -> str:
    more = f" and {len(drawn) - _NAMED} more" if drawn[_NAMED:] else ""
    return f"{folder}: drawn with them, and kept: {', '.join(drawn[:_NAMED])}{more}"


def _saw(line: dict[str, Any], removed: Removed) -> bool:
    """Whether a sample was drawn with a document; earlier versions wrote no marks."""

    def is_one(shown: dict[str, Any]) -> bool:
        if "mark" in shown:
            return shown["mark"] in removed.marks
        about = [shown.get(name, "") for name in ("key", "source", "licence")]
        return "key" in shown and removed.covers(*about)  # one by hand is of no bank

    return any(map(is_one, line["documents"]))
