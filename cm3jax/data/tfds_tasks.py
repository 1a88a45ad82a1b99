"""COCO as tensorflow-datasets has it, for the tasks that learn from it.

    --data.tasks coco_captions tfds:coco_captions/2014:1.1.0

`coco_captions` has captions and objects, `coco` only objects. Of Open Images it has the classes'
codes without their names: that one is read from its own files.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cm3jax.data.changes import Made
from cm3jax.data.readers.datasets import TfdsSplit
from cm3jax.data.readers.items import BadRecord, first_text
from cm3jax.errors import UserError
from cm3jax.shapes import Int, UInt8
from cm3jax.tasks import captions, grounded, structure
from cm3jax.tasks.edges import canny, scribble
from cm3jax.tasks.records import BadCase, sound
from cm3jax.tasks.task import Case, Skipped, Task, Value
from cm3jax.tokenizers.image_tokenizer import decode_picture, orientation, picture_size

_CAPTIONS = 5
"""Captions of an image, of which each makes a case."""

Pixels = UInt8[np.ndarray, "S S 3"]
Values = Mapping[str, Value]


class TfdsCases:
    """The cases of a split by number, each read when it is asked for.

    Raises `UserError` for another data set of tasks, and for a dataset that can't be read.
    """

    note = ""
    """What a user should know of them."""

    def __init__(self, name: str, dataset: str, split: str, data_dir: str, size: int):
        """`dataset` is named with its version, as `TfdsSplit` wants it; `size` is the images'."""
        if name not in _MAKERS:
            raise UserError(
                f"{name} is not read from tensorflow-datasets, which {', '.join(_MAKERS)} are; "
                "give the folder of its own files."
            )
        # COCO's editions call it so in the one and in full in the other.
        short = split == "validation" and dataset.startswith("coco_captions")
        self._split = TfdsSplit(dataset, "val" if short else split, data_dir)
        self._size = size
        self._task, self._each, self._make = _MAKERS[name]
        self._numbers: Sequence[int] = range(self._each * len(self._split))

    def some(self, numbers: Int[np.ndarray, " M"], note: str) -> "TfdsCases":
        """Only the cases of these numbers, with a note on why."""
        part = copy.copy(self)
        part._numbers, part.note = numbers.tolist(), note
        return part

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Case | Skipped:
        place, which = divmod(self._numbers[index], self._each)
        key = self._key(index)
        try:
            record = self._split.record(place)
            picture = decode_picture(record["image"], self._size)
            values = self._make(record, which, picture.pixels, self)
        except BadRecord as bad:
            return Skipped(key, bad.reason)
        except (BadCase, ValueError) as error:
            return Skipped(key, str(error))
        sizes = ((picture.width, picture.height),)
        return Case(key, self._task, values, f"tfds:{self._split.name}", sizes=sizes)

    def made(self, span: range) -> list[Made]:
        """The state of the dataset's files."""
        return [
            Made(self._key(index), self._split.made(self._numbers[index] // self._each).state)
            for index in span
        ]

    def _key(self, index: int) -> str:
        place, which = divmod(self._numbers[index], self._each)
        return f"image-{place}-{which}" if self._each > 1 else f"image-{place}"

    def boxes(self, record: Mapping[str, Any]) -> list[grounded.Box]:
        """The boxes of a record's objects; a crowd's is left out. `BadCase` without any."""
        if "objects" not in record:
            raise BadCase("it has no objects")
        names = self._split.class_names("objects", "label")
        width, height = picture_size(record["image"])
        turn = orientation(record["image"])
        objects, found = record["objects"], []
        for box, label, crowd in zip(
            objects["bbox"], objects["label"], objects["is_crowd"], strict=True
        ):
            top, left, bottom, right = (float(edge) for edge in box)
            corners = (left * width, top * height, right * width, bottom * height)
            shown = grounded.turned(corners, (width, height), turn)
            found.append(None if crowd else grounded.place(names[label], *shown))
        return grounded.largest(found)


def _caption(record: Mapping[str, Any], which: int) -> str:
    """One of a record's captions; `BadCase` where there are fewer."""
    texts = record.get("captions", {}).get("text", ())
    text = first_text(texts[which]) if which < len(texts) else ""
    if not text.strip():
        raise BadCase(f"it has no caption {which + 1}")
    return sound(text)


def _captions(record, which: int, pixels: Pixels, cases: TfdsCases) -> Values:
    return {"answer": _caption(record, which), "image": pixels}


def _map(
    compute: Callable[[Pixels], Pixels], record, which: int, pixels: Pixels, cases: TfdsCases
) -> Values:
    return {"caption": _caption(record, which), "image": compute(pixels), "answer": pixels}


def _boxes(record, which: int, pixels: Pixels, cases: TfdsCases) -> Values:
    boxes = cases.boxes(record)
    try:
        told = _caption(record, 0)
    except BadCase:
        told = grounded.labels(boxes)
    return {"caption": told, "boxes": grounded.write_boxes(boxes), "answer": pixels}


_MAKERS: dict[str, tuple[Task, int, Callable[..., Values]]] = {
    "coco_captions": (captions.CAPTION, _CAPTIONS, _captions),
    "coco_canny": (structure.EDGES, _CAPTIONS, partial(_map, canny)),
    "coco_scribble": (structure.SCRIBBLE, _CAPTIONS, partial(_map, scribble)),
    "coco_boxes": (grounded.GROUNDED, 1, _boxes),
}
"""Task, cases of a record, and what makes the values of one."""
