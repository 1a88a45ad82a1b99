"""Dirty raw data in every format: what is broken, and how a careful reader must take it."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image


def jpeg(seed: int, side: int = 24) -> bytes:
    """An image of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of a few bytes that says it has `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = chunk(b"IDAT", zlib.compress(bytes(3 * side + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def wrong_exif(seed: int) -> bytes:
    """A whole image whose EXIF block is noise."""
    whole = jpeg(seed)
    noise = b"Exif\0\0MM\0*" + bytes(np.random.default_rng(seed).integers(0, 256, 40, np.uint8))
    return whole[:2] + b"\xff\xe1" + (len(noise) + 2).to_bytes(2, "big") + noise + whole[2:]


BROKEN = {
    "truncated": (lambda seed: jpeg(seed)[:-200], "a fox", "not an image that can be read"),
    "html": (lambda seed: b"<!doctype html><title>404</title>", "a fox", "not an image"),
    "nothing": (lambda seed: b"", "a fox", "is empty"),
    "bomb": (lambda seed: bomb(), "a fox", "pixels"),
    "large": (lambda seed: bomb(9_000), "a fox", "9000x9000 pixels"),
    "no-caption": (jpeg, "", "caption"),
    "blank": (jpeg, " \n", "caption"),
    "nul": (jpeg, "a fox\0", "control character U\\+0000"),
    "backwards": (jpeg, "a \u202efox", "control character U\\+202E"),
}
"""Image, caption, and what must be said of them."""

GOOD = {
    "plain": (jpeg, "a red fox"),
    "exif": (wrong_exif, "a fox of a broken camera"),
    "hebrew": (jpeg, "שועל אדום \u200fעל ירח"),
    "arabic": (jpeg, "ثعلب أحمر"),
    "signs": (jpeg, "a fox 🦊 <script>alert(1)</script>"),
}


def samples(good: int, broken: int) -> list[tuple[str, bytes, str]]:
    """Names, images and captions, mixed; names of broken ones start with their kind."""
    made = []
    for kinds, count in ((GOOD, good), (BROKEN, broken)):
        for i in range(count):
            kind = list(kinds)[i % len(kinds)]
            picture, caption = kinds[kind][:2]
            made.append((f"{kind}-{i}", picture(i), caption))
    order = np.random.default_rng(0).permutation(len(made))
    return [made[i] for i in order]


def folder(path: Path, made: list[tuple[str, bytes, str]]) -> Path:
    path.mkdir()
    lines = []
    for name, picture, caption in made:
        (path / f"{name}.jpg").write_bytes(picture)
        lines.append(json.dumps({"file": f"{name}.jpg", "caption": caption}).encode())
    lines += [
        b"{not json",
        b'["a list"]',
        b'{"file": "\xff.jpg"}',
        b'{"caption": "no file"}',
        b'{"file": "missing.jpg", "caption": "a fox"}',
        b'{"file": "../outside.jpg", "caption": "a fox"}',
        b'{"file": "/etc/hostname", "caption": "a fox"}',
        b'{"file": "nul\\u0000.jpg", "caption": "a fox"}',
        b'{"file": "plain-0.jpg", "caption": "half a \\ud800 pair"}',
        b"",
    ]
    (path / "captions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return path


FOLDER_LINES = 9
"""Broken lines that `folder` adds; an empty one at the end is none."""


def tars(path: Path, made: list[tuple[str, bytes, str]], shards: int = 2) -> Path:
    """Shards; the last one is cut off in its last image."""
    path.mkdir()
    for shard in range(shards):
        with tarfile.open(path / f"{shard:05d}.tar", "w") as archive:
            for i, (name, picture, caption) in enumerate(made[shard::shards]):
                _add(archive, f"{name}.jpg", picture)
                if i % 2:
                    _add(archive, f"{name}.txt", caption.encode())
                else:
                    about = {"caption": caption, "license": "CC0-1.0", "url": f"http://x/{name}"}
                    _add(archive, f"{name}.json", json.dumps(about).encode())
            if shard == 0:
                for name in ("../../outside", "/tmp-outside/x", "a/../../y"):
                    _add(archive, f"{name}.jpg", jpeg(1))
                link = tarfile.TarInfo("link.jpg")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
                archive.addfile(link)
                _add(archive, "alone.txt", b"a caption of nothing")
                _add(archive, "bad-json.jpg", jpeg(2))
                _add(archive, "bad-json.json", b"{")
    cut = path / f"{shards:05d}.tar"
    with tarfile.open(cut, "w") as archive:
        _add(archive, "last.txt", b"a cut fox")
        _add(archive, "last.jpg", jpeg(3, side=64))
    cut.write_bytes(cut.read_bytes()[:3000])
    (path / f"{shards + 1:05d}.tar").write_bytes(b"<html>" * 200)
    return path


TAR_SAMPLES = 8
"""Broken samples that `tars` adds."""


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
