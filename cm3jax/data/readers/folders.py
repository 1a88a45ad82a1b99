"""A folder of images without a list of them: captions beside the files, subjects as folders."""

import contextlib
from collections.abc import Iterator

from etils import epath

from cm3jax.data.changes import Made
from cm3jax.data.readers import tars
from cm3jax.data.readers.items import (
    BadRecord,
    Facts,
    RawItem,
    caption_of,
    file_mark,
    is_hidden,
    join_inside,
    parse_object,
)
from cm3jax.data.readers.lines import named_split
from cm3jax.io.paths import matching
from cm3jax.io.texts import decode_text, read_regular

_KINDS = (*tars.PICTURES, "heic", "heif", "jxl", "svg")
PICTURES = tuple(f".{kind}" for kind in _KINDS)
"""How the names of image files end, in lower case. Nothing here reads the last four, so each
such file is a record that is refused by name; passed over, nobody would know of it."""
_DEPTHS = ("*", "*/*", "*/*/*")


class PictureFolder:
    """The images in a folder and in two levels of folders in it, in order of their names.

    The caption of `flags/france.png` is the text of `flags/france.txt` (or `.TXT`). A folder in it
    is named by what its images show, unless its name has no letter: that is their subject, and
    the caption of one without a text file. A folder in which nothing says what any image shows
    gives images without text. Where it has both `train` and `test` (or `validation` and the
    like), these name no subjects, and the images of the latter are for validation. What is hidden
    is passed over.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        found = (file for depth in _DEPTHS for file in matching(path, depth))
        names = {name for f in found if not is_hidden(name := str(f.relative_to(path)))}
        self.names = sorted(n for n in names if n.lower().endswith(PICTURES))
        """Paths of the images, relative to the folder."""
        stems = {_stem(name) for name in self.names}
        # In this order: of both, a.txt counts and not a.TXT.
        texts = [name for name in sorted(names) if name.lower().endswith(".txt")]
        self._texts = {_stem(name): name for name in texts if _stem(name) in stems}
        self.captioned = bool(self._texts)
        """Whether an image has its caption in a file beside it."""
        tops = {_top(name) for name in self.names}
        self._splits = {top: split for top in tops if (split := named_split(top))}
        if not {"train", "validation"} <= set(self._splits.values()):
            self._splits = {}  # images of trains and banks, perhaps
        self._bare = not self._texts and not any(map(self._subject, self.names))
        beside = () if self._texts else sorted(names - {*self.names})
        known = stems | {*self.names}
        self.unread = next((name for name in beside if self._is_caption(name, known)), "")
        """A file that says what an image shows in a way that is not read, where no file's way is;
        empty without one."""

    def __len__(self) -> int:
        return len(self.names)

    def item(self, place: int) -> RawItem:
        """The record of an image; `BadRecord` for one without a caption where others have one."""
        name = self.names[place]
        subject = self._subject(name)
        try:
            parts: tuple[str | epath.Path, ...] = (join_inside(self._path, name),)
            if not self._bare:
                parts = (self._caption(name, subject), *parts)
        except ValueError as error:
            raise BadRecord(name, str(error)) from None
        subjects = (subject,) if subject else ()
        return RawItem(name, parts, str(self._path), "unknown", subjects=subjects)

    def facts(self) -> Iterator[Facts]:
        """Each image's name, and the subject that its folder names."""
        for name in self.names:
            subject, usual = self._subject(name), self._splits.get(_top(name), "")
            yield Facts(name, (name,), (subject,) if subject else (), usual=usual)

    def made(self, place: int) -> Made:
        """The state of an image and of its caption."""
        name = self.names[place]
        text = self._texts.get(_stem(name), f"{_stem(name)}.txt")
        return Made(name, ", ".join(file_mark(self._path / file) for file in (name, text)))

    def _subject(self, name: str) -> str:
        folder = name.rpartition("/")[0]
        return "" if folder in self._splits else _folder(name)

    def _caption(self, name: str, subject: str) -> str:
        text = self._texts.get(_stem(name))
        if text is None:
            if not subject:
                raise ValueError(f"it has no caption: there is no {_stem(name)}.txt")
            return subject
        try:
            return decode_text(read_regular(join_inside(self._path, text))).rstrip("\r\n")
        except OSError as error:
            raise ValueError(f"{text} can't be read ({type(error).__name__})") from None
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None

    def _is_caption(self, name: str, pictures: set[str]) -> bool:
        """Whether a file is called as an image is, with its ending or without, and says something
        of it: `a.caption`, `a.png.txt`, or, where no folder names a subject either, an `a.json`
        with a caption in it."""
        if _stem(name) not in pictures:
            return False
        if not name.endswith(".json"):
            return name.lower().endswith((".txt", ".caption"))
        if not self._bare:
            return False
        with contextlib.suppress(OSError, ValueError):
            fields = parse_object(read_regular(join_inside(self._path, name)))
            return isinstance(fields, dict) and bool(caption_of(fields))
        return False


def _stem(name: str) -> str:
    """A name without its last ending."""
    return name.rpartition(".")[0]


def _top(name: str) -> str:
    """The first folder on the way to an image; empty where there is none."""
    return name.partition("/")[0] if "/" in name else ""


def _folder(name: str) -> str:
    """The name of an image's own folder in words; empty where that names nothing."""
    folder = name.rpartition("/")[0].rpartition("/")[2].replace("_", " ").strip()
    return folder if any(map(str.isalpha, folder)) else ""
