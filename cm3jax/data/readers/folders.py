"""A folder of pictures without a list of them: captions beside the files, subjects as folders."""

from collections.abc import Iterator

from etils import epath

from cm3jax.data.changes import Made
from cm3jax.data.readers import tars
from cm3jax.data.readers.items import (
    BadRecord,
    Facts,
    RawItem,
    file_mark,
    is_hidden,
    join_inside,
)
from cm3jax.data.readers.lines import named_split
from cm3jax.io.folders import matching
from cm3jax.io.texts import decode_text, read_regular

_KINDS = (*tars.PICTURES, "heic", "heif", "jxl", "svg")
PICTURES = tuple(f".{kind}" for kind in _KINDS)
"""How the names of picture files end, in lower case. Nothing here reads the last four, so each
such file is a record that is refused by name; passed over, nobody would know of it."""
_DEPTHS = ("*", "*/*", "*/*/*")


class PictureFolder:
    """The pictures in a folder and in two levels of folders in it, in order of their names.

    The caption of `flags/france.png` is the text of `flags/france.txt`. A folder in it is named by
    what its pictures show, unless its name has no letter: that is their subject, and the caption of
    one without a text file. A folder in which nothing says what any picture shows gives pictures
    without text. Where it has both `train` and `test` (or `validation` and the like), these name no
    subjects, and the pictures of the latter are for validation. What is hidden is passed over.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        found = (file for depth in _DEPTHS for file in matching(path, depth))
        names = {name for f in found if not is_hidden(name := str(f.relative_to(path)))}
        self.names = sorted(n for n in names if n.lower().endswith(PICTURES))
        """Paths of the pictures, relative to the folder."""
        self._texts = names & {_text_file(name) for name in self.names}
        self.captioned = bool(self._texts)
        """Whether a picture has its caption in a file beside it."""
        tops = {_top(name) for name in self.names}
        self._splits = {top: split for top in tops if (split := named_split(top))}
        if not {"train", "validation"} <= set(self._splits.values()):
            self._splits = {}  # pictures of trains and banks, perhaps
        self._bare = not self._texts and not any(map(self._subject, self.names))

    def __len__(self) -> int:
        return len(self.names)

    def item(self, place: int) -> RawItem:
        """The record of a picture; `BadRecord` for one without a caption where others have one."""
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
        """Each picture's name, and the subject that its folder names."""
        for name in self.names:
            subject, usual = self._subject(name), self._splits.get(_top(name), "")
            yield Facts(name, (name,), (subject,) if subject else (), usual=usual)

    def made(self, place: int) -> Made:
        """The state of a picture and of its caption."""
        name = self.names[place]
        states = (file_mark(self._path / file) for file in (name, _text_file(name)))
        return Made(name, ", ".join(states))

    def _subject(self, name: str) -> str:
        folder = name.rpartition("/")[0]
        return "" if folder in self._splits else _folder(name)

    def _caption(self, name: str, subject: str) -> str:
        text = _text_file(name)
        if text not in self._texts:
            if not subject:
                raise ValueError(f"it has no caption: there is no {text}")
            return subject
        try:
            return decode_text(read_regular(join_inside(self._path, text))).rstrip("\r\n")
        except OSError as error:
            raise ValueError(f"{text} can't be read ({type(error).__name__})") from None
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None


def _text_file(name: str) -> str:
    return name[: name.rindex(".")] + ".txt"


def _top(name: str) -> str:
    """The first folder on the way to a picture; empty where there is none."""
    return name.partition("/")[0] if "/" in name else ""


def _folder(name: str) -> str:
    """The name of a picture's own folder in words; empty where that names nothing."""
    folder = name.rpartition("/")[0].rpartition("/")[2].replace("_", " ").strip()
    return folder if any(map(str.isalpha, folder)) else ""
