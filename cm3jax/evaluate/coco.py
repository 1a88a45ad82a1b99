"""Captions in COCO's format, and which of them are asked."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import digest, read_json
from cm3jax.io.texts import clean_text

_FIELDS = ("images", "annotations")


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption of an image."""

    id: int
    """The annotation's id."""
    text: str
    file: str
    """Name of the image's file; empty where `images` does not say it."""


@dataclasses.dataclass(frozen=True)
class Captions:
    """The captions that are asked."""

    chosen: tuple[Caption, ...]
    total: int
    """Captions in the file."""
    seed: int
    """Seed of the choice."""
    file: str
    """Name of the caption file."""
    left_out: str = ""
    """How many of the file's captions can't be asked, and why; empty if all can."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that is asked."""
        return digest(*(part for one in self.chosen for part in (str(one.id), one.text)))


def read_captions(path: epath.PathLike, count: int | None = None, seed: int = 0) -> Captions:
    """`count` captions of a `captions_val2014.json`, drawn without replacement, in order of id.

    Which ones depends only on the file and the seed; all, where there are no more or `count` is
    None. One without a text or an id, or with the id of an earlier one, is left out, which
    `left_out` says. Raises `UserError` for a file that is missing, damaged or of another form.
    """
    value = read_json(path, "the caption file")
    pictures, rows = map(value.get, _FIELDS) if isinstance(value, dict) else (None, None)
    if not isinstance(pictures, list) or not isinstance(rows, list):
        raise UserError(
            f"{path} is not COCO's format; `images` need id and file_name, `annotations` id, "
            "image_id and caption."
        )
    files = {_number(one, "id"): one.get("file_name") for one in pictures if _is_row(one)}
    every: dict[int, Caption] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        try:
            caption = _caption(row, files)
            if caption.id in every:
                raise ValueError("another has its id")
            every[caption.id] = caption
        except ValueError as error:
            left_out[str(error)] += 1
    if left_out and not every:
        raise UserError(f"{path} is not COCO's format: of its annotations {_why(left_out)}.")
    if not every or (count is not None and count < 1):
        raise UserError(f"{path} holds {len(every)} captions and {count} are asked; ask for some.")
    numbers = sorted(every)
    order = np.random.default_rng(seed).permutation(len(numbers))[:count]
    chosen = tuple(every[numbers[place]] for place in sorted(order.tolist()))
    return Captions(chosen, len(every), seed, epath.Path(path).name, _why(left_out))


def _why(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} left out: {reason}" for reason, count in left_out.items())


def _is_row(one: Any) -> bool:
    return isinstance(one, dict) and _number(one, "id") is not None


def _number(one: dict[str, Any], field: str) -> int | None:
    """An id of a row as a number; None where it is none."""
    value = one.get(field)
    try:
        number = None if isinstance(value, bool | list | dict | None) else int(value)
        return None if isinstance(value, float) and number != value else number  # 1.5
    except (TypeError, ValueError, OverflowError):
        return None


def _caption(one: Any, files: dict[int | None, Any]) -> Caption:
    """The caption of a row; `ValueError` says why it can't be asked."""
    if not _is_row(one):
        raise ValueError("it has no id that is a number")
    text = one.get("caption")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it has no text")
    file = files.get(_number(one, "image_id"))
    return Caption(int(one["id"]), clean_text(text), file if isinstance(file, str) else "")
