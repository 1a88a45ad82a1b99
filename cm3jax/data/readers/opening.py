"""Chooses the readers of a source by the files that it consists of."""

import os

from etils import epath

from cm3jax.config import DataConfig
from cm3jax.data.readers.folders import PictureFolder
from cm3jax.data.readers.items import Reader, is_hidden
from cm3jax.data.readers.lines import CaptionLines, InterleavedLines
from cm3jax.data.readers.tars import TarShard
from cm3jax.errors import UserError
from cm3jax.io.paths import matching
from cm3jax.io.texts import require_regular

_CAPTIONS = ("captions.jsonl", "metadata.jsonl")
_UNREAD_LISTS = (".csv", ".tsv", ".token", ".jsonl", "captions.txt", "captions.json")
"""How the names of lists of captions end that are not read."""
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_DOCUMENTS = "documents.jsonl"


def open_readers(data: DataConfig) -> list[Reader]:
    """The readers of `data.source`; `UserError` if none of them knows the files there."""
    if data.source.startswith("tfds:"):
        from cm3jax.data.readers.datasets import TfdsSplit

        name, _, split = data.source.removeprefix("tfds:").partition("#")
        by_subjects = data.hold_back == "subjects"
        return [TfdsSplit(name, split or "train", data.raw, by_subjects)]
    path = epath.Path(data.source)
    if path.suffix == ".jsonl" and _is_there(path):
        return [InterleavedLines(path)]
    for name in _CAPTIONS:
        if _is_there(path / name):
            return [CaptionLines(path / name)]
    if _is_there(path / _DOCUMENTS):
        return [InterleavedLines(path / _DOCUMENTS)]
    tars, packed = _files(path, ".tar"), _files(path, *_PACKED)
    if tars and packed:
        raise _unread(path, packed)
    if tars:
        return [TarShard(file, name) for name, file in tars.items()]
    if tables := _files(path, ".parquet"):
        from cm3jax.data.readers.tables import TableShard

        return [TableShard(file, name, path) for name, file in tables.items()]
    for name in _CAPTIONS:
        if lists := _files(path, f"/{name}", within="*/"):
            folders = {at.removesuffix(f"/{name}"): file for at, file in lists.items()}
            _require_listed(path, tuple(f"{folder}/" for folder in folders), name)
            return [CaptionLines(file, folder) for folder, file in folders.items()]
    pictures = PictureFolder(path) if path.is_dir() else None
    if packed and not pictures:  # beside images, it is what they were unpacked from
        raise _unread(path, packed)
    lists = _files(path, *_UNREAD_LISTS)
    if lists and not (pictures and pictures.captioned):
        raise UserError(
            f"{path} has captions in {next(iter(lists))}, which is not read; write them as "
            f"{_CAPTIONS[1]}: one JSON object per row, with `file_name` and `text`; or move "
            "it away if it has none."
        )
    if pictures:
        if pictures.unread:
            raise UserError(
                f"{path} has a caption in {pictures.unread}, which is not read; put that of a.png "
                "into a.txt, or all of them into a captions.jsonl, or move it away if it is none."
            )
        return [pictures]
    if not path.exists():
        raise UserError(
            f"data.source={data.source} does not exist; give a folder of images (docs/data.md says "
            "how captions are written), tfds:NAME, `emblems` or `emoji`."
        )
    raise UserError(
        f"data.source={data.source} has nothing that is read: no images (PNG, JPEG, …), no tar or "
        f"parquet files, no {_DOCUMENTS}, and no {_CAPTIONS[0]} with lines such as "
        '{"file": "a.png", "caption": "a cat"}; give such a folder, a JSONL of documents, '
        "tfds:NAME, `emblems` or `emoji` (docs/data.md)."
    )


def _unread(path: epath.Path, packed: dict[str, epath.Path]) -> UserError:
    return UserError(
        f"{path} has {next(iter(packed))}, a compressed archive, of which samples are not read in "
        "place; decompress it (gunzip, unzstd), or move it away."
    )


def _require_listed(path: epath.Path, folders: tuple[str, ...], name: str) -> None:
    """Refuse images in folders that have no list of captions beside folders that have one."""
    others = [picture for picture in PictureFolder(path).names if not picture.startswith(folders)]
    if others:
        raise UserError(
            f"{path} has a {folders[0]}{name}, and {len(others)} images, {others[0]} the first, "
            f"that are in no folder with one; give them a {name}, or move them away."
        )


def _files(folder: epath.Path, *ends: str, within: str = "") -> dict[str, epath.Path]:
    """The files whose paths end so in a folder, or in what `within` matches in it, and in the
    folders there, by relative name, in order."""
    if not folder.is_dir():
        return {}
    # All of them, since Python passes over broken links by a plain name.
    every = (file for depth in ("*", "*/*") for file in matching(folder, within + depth))
    found = [file for file in every if os.fspath(file).endswith(ends)]
    files = {str(file.relative_to(folder)): file for file in sorted(found)}
    shown = {name: file for name, file in files.items() if not is_hidden(name)}
    return {name: file for name, file in shown.items() if _is_there(file)}


def _is_there(path: epath.Path) -> bool:
    """Whether a path is a file; `UserError` for a pipe, which would be waited for, a device, a
    broken link, and a file that may not be read."""
    if path.is_dir() or not (path.exists() or os.path.islink(path)):
        return False
    try:
        require_regular(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} can't be read ({reason}); move it out of data.source.") from None
    return True
