"""Tar shards as webdataset and img2dataset write them.

Members that share a name up to the first dot of their file name are one sample: `0001.jpg`,
`0001.txt` or the `caption` (or `text`) in `0001.json`, which may also have `licence`, `source`,
`subjects` and `split`. Hidden members, those of `__MACOSX`, webdataset's `__NAME__` and names
without an extension belong to no sample and are passed over. Nothing is ever extracted: bytes are
read in place.
"""

import dataclasses
import functools
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from etils import epath

from cm3jax.data.changes import Made
from cm3jax.data.readers.items import (
    BadRecord,
    Facts,
    RawItem,
    caption_of,
    file_mark,
    first_text,
    is_hidden,
    parse_object,
    require_inside,
)
from cm3jax.data.readers.lines import origin, others, split_of, subjects_of, usual_split
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.texts import MOST_BYTES, file_state

_COMMON = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
PICTURES = (*_COMMON, "avif", "jp2", "ppm", "pgm", "jfif")
"""Extensions of image files; the first that a sample has is its image."""
_TEXTS = ("txt", "text", "caption")
_GZIP = b"\x1f\x8b"
_TAIL = 1024
"""Bytes at an image's end that, with its size, tell it from others."""


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Where a sample's members are: first byte and size by extension."""

    key: str
    members: dict[str, tuple[int, int]]
    fault: str = ""


class TarShard:
    """The samples of one uncompressed tar archive. `name` goes in front of their keys."""

    def __init__(self, path: epath.Path, name: str):
        self._path, self._name, self._state = path, name, file_state(path)
        self._count = len(_samples(path, self._state))

    def __len__(self) -> int:
        return self._count

    def item(self, place: int) -> RawItem:
        """One sample; `BadRecord` says what is wrong with it."""
        if file_state(self._path) != self._state:
            raise UserError(f"{self._path} was changed while it was read; start again.")
        sample = _samples(self._path, self._state)[place]
        key = f"{self._name}/{sample.key}" if sample.key else self._name
        try:
            return self._read(sample, key)
        except ValueError as error:
            raise BadRecord(key, str(error)) from None

    def _read(self, sample: _Sample, key: str) -> RawItem:
        if sample.fault:
            raise ValueError(sample.fault)
        fields = self._fields(sample)
        picture = next((name for name in PICTURES if name in sample.members), None)
        if picture is None:
            given = ", ".join(f".{name[:20]}" for name in sorted(sample.members)[:5])
            raise ValueError(f"it has no image that is read, only {given}")
        beside = (first_text(self._member(sample, n)) for n in _TEXTS if n in sample.members)
        caption = next((text for text in beside if text.strip()), "") or caption_of(fields)
        if not caption:
            raise ValueError("it has no caption")
        source, licence = origin(fields, self._path.parent.name)
        parts = (caption, self._member(sample, picture))
        subjects, _ = subjects_of(fields), split_of(fields)
        return RawItem(key, parts, source, licence, others(fields), subjects=subjects)

    def facts(self) -> Iterator[Facts]:
        """Each sample's image by its size and its last bytes, and what its .json says."""
        usual = usual_split(self._name)
        for sample in _samples(self._path, self._state):
            key = f"{self._name}/{sample.key}"
            picture = next((name for name in PICTURES if name in sample.members), None)
            try:
                fields = self._fields(sample)
                pictures = () if picture is None else (self._tail(sample, picture),)
                yield Facts(key, pictures, subjects_of(fields), split_of(fields), usual)
            except ValueError:
                yield Facts(key, usual=usual)

    def made(self, place: int) -> Made:
        """The state of the archive."""
        return Made(
            f"{self._name}/{_samples(self._path, self._state)[place].key}", file_mark(self._path)
        )

    def _fields(self, sample: _Sample) -> dict[str, Any]:
        """What the .json says; nothing without one."""
        if "json" not in sample.members:
            return {}
        fields = parse_object(self._member(sample, "json"))
        if not isinstance(fields, dict):
            raise ValueError("its .json is not an object")
        return fields

    def _tail(self, sample: _Sample, extension: str) -> str:
        start, size = sample.members[extension]
        with self._path.open("rb") as file:
            file.seek(start + max(0, size - _TAIL))
            return f"{size} {digest(file.read(min(size, _TAIL)))}"

    def _member(self, sample: _Sample, extension: str) -> bytes:
        start, size = sample.members[extension]
        if size > MOST_BYTES:
            raise ValueError(f"its .{extension} has {size} bytes, more than {MOST_BYTES}")
        with self._path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) != size:
            raise ValueError(f"its .{extension} is cut off where the archive ends")
        return content


@functools.lru_cache(maxsize=4)
def _samples(path: epath.Path, state: tuple[int, ...]) -> list[_Sample]:
    """The samples of an archive in order; what is damaged is a sample with a fault.

    `state` is the file's `file_state`: an archive that is written again is another one.
    """
    samples: list[_Sample] = []
    seen: Counter[str] = Counter()

    def add(key: str, members: dict[str, tuple[int, int]], fault: str = "") -> None:
        seen[key] += 1
        key = key if seen[key] == 1 else f"{key}#{seen[key]}"
        samples.append(_Sample(key, members, fault))

    current: str | None = None
    members: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        for entry in _entries(file):
            if isinstance(entry, str):
                add("", {}, entry)
                continue
            if _is_no_sample(entry.name):
                continue
            stem, extension = _split(entry.name)
            fault = _fault(entry)
            if fault:
                add(entry.name, {}, fault)
                continue
            if stem != current or extension in members:
                if current is not None:
                    add(current, members)
                current, members = stem, {}
            members[extension] = (entry.offset_data, entry.size)
    if current is not None:
        add(current, members)
    return samples


def _entries(file):
    """The members of an archive but folders; then what is wrong with it, if anything is."""
    if file.read(2) == _GZIP:
        yield "the archive is compressed; decompress it"
        return
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (entry := archive.next()) is not None:
                # Or all of them are kept.
                archive.members = []  # type: ignore[attr-defined]  # typeshed does not know it
                if not entry.isdir():
                    yield entry
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        yield f"the archive can't be read further ({error})"
        return
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile stops at a damaged header, silently
        yield f"the archive is damaged at byte {end}; what follows is lost"


def _is_no_sample(name: str) -> bool:
    """Whether a member is hidden or describes the archive: `._1.jpg`, `__index__`, `README`."""
    last = name.rpartition("/")[2]
    return is_hidden(name) or "." not in last or (last.startswith("__") and last.endswith("__"))


def _split(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and what follows in lower case."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _fault(entry: tarfile.TarInfo) -> str:
    try:
        require_inside(entry.name)
    except ValueError as error:
        return str(error)
    return "" if entry.isreg() and not entry.issparse() else "it is a link or device, not a file"
