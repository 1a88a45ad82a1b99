"""Objects at places that the prompt gives: boxes as text (COCO, Open Images, Objects365).

A box is `label at (x1, y1) -> (x2, y2)`, in integers from 0 to 255 over the square that the image
tokenizer sees.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.paths import matching
from cm3jax.io.texts import shorten
from cm3jax.tasks.captions import coco_licence, coco_split
from cm3jax.tasks.records import (
    BadCase,
    Read,
    by_id,
    csv_rows,
    grouped,
    id_of,
    inside,
    listed,
    sound,
    text_of,
    to_cases,
)
from cm3jax.tasks.task import Case, Task
from cm3jax.tokenizers.image_tokenizer import MIRRORED, picture_head

GRID = 256
"""Places along one side of an image."""
MOST = 8
"""Boxes of a case; of more, the largest."""
_VISIBLE = 0.25  # of a box must be inside the square, or it is left out

GROUNDED = Task(
    "grounded",
    templates=(
        "Generate high quality image of {caption} with segmentations {boxes}<break>{answer}",
        'Generate high quality image of "{caption}" with {boxes}<break>{answer}',
    ),
)


@dataclasses.dataclass(frozen=True)
class Box:
    """A label and its box, on the grid."""

    label: str
    left: int
    top: int
    right: int
    bottom: int

    def __str__(self) -> str:
        return f"{self.label} at ({self.left}, {self.top}) -> ({self.right}, {self.bottom})"

    @classmethod
    def of(cls, text: str) -> "Box":
        """The box of `LABEL:x1,y1,x2,y2`; `UserError` where that is none."""
        found = re.fullmatch(
            r"\s*([^:]+?)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text
        )
        box = cls(found[1], *map(int, found.groups()[1:])) if found else None
        if box is None or not (box.left < box.right < GRID and box.top < box.bottom < GRID):
            raise UserError(
                f"--box {text!r} is not a box; write LABEL:x1,y1,x2,y2 with corners from 0 to "
                f"{GRID - 1}, the upper left one first."
            )
        return box


_BOX = re.compile(r"(.+?) at \((\d+), (\d+)\) -> \((\d+), (\d+)\)(?:, |$)")


def write_boxes(boxes: Sequence[Box]) -> str:
    """The text of boxes, as templates have it."""
    return ", ".join(map(str, boxes))


def parse_boxes(text: str) -> list[Box]:
    """The boxes in a text that `write_boxes` wrote; what is not a box is passed over."""
    return [Box(found[1], *map(int, found.groups()[1:])) for found in _BOX.finditer(text)]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, whatever their labels."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(0, width) * max(0, height)
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> int:
    return (box.right - box.left) * (box.bottom - box.top)


def place(label: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> Box | None:
    """A box (left, top, right, bottom) in pixels of an image (width, height) on the grid.

    Of the image only the largest centred square is seen; None where little of the box is left.
    """
    side = min(size)
    left, top, right, bottom = box
    area = (right - left) * (bottom - top)
    margins = ((size[0] - side) / 2, (size[1] - side) / 2)
    seen = [
        min(max(value - margin, 0), side)
        for value, margin in zip(box, (*margins, *margins), strict=True)
    ]
    inside_area = (seen[2] - seen[0]) * (seen[3] - seen[1])
    if area <= 0 or inside_area < _VISIBLE * area:
        return None
    corners = [min(round(value * GRID / side), GRID - 1) for value in seen]
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return None
    return Box(label, *corners)


def turned(
    box: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """A box and the size of its image as EXIF's `orientation`, 1 to 8, shows them.

    Tools that draw boxes measure them in the pixels of the file, and images are read turned.
    """
    (left, top, right, bottom), (width, height) = box, size
    if orientation in (2, 3, 7, 8):  # mirrored before the axes are exchanged
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    if orientation > MIRRORED:
        return (top, left, bottom, right), (height, width)
    return (left, top, right, bottom), (width, height)


def largest(boxes: Sequence[Box | None]) -> list[Box]:
    """The `MOST` largest boxes in their order; `BadCase` without any."""
    found = [box for box in boxes if box is not None]
    if not found:
        raise BadCase("it has no box inside the image's square")
    kept = sorted(found, key=_area, reverse=True)[:MOST]
    return [box for box in found if box in kept]


def labels(boxes: Sequence[Box]) -> str:
    """A caption made of labels, for images that come without one."""
    return " and ".join(dict.fromkeys(box.label for box in boxes))


def coco_boxes(folder: epath.Path, split: str) -> Iterator[Read]:
    """`annotations/instances_train2017.json`, `annotations/captions_train2017.json` and
    `train2017/` (cocodataset.org, "data format"); a crowd's box is left out."""
    part = coco_split(split)
    captions = grouped(
        listed(folder / "annotations" / f"captions_{part}.json", "annotations"), "image_id"
    )
    found = {
        name: [item["caption"] for item in items if isinstance(item.get("caption"), str)]
        for name, items in captions.items()
    }
    path = folder / "annotations" / f"instances_{part}.json"
    return _coco_like(path, folder / part, "COCO", found)


def objects365_boxes(folder: epath.Path, split: str) -> Iterator[Read]:
    """`zhiyuan_objv2_train.json`, in COCO's layout, and the images under the names in it
    (objects365.org, the edition of 2020); captions are made of labels."""
    name = "val" if split == "validation" else "train"
    return _coco_like(folder / f"zhiyuan_objv2_{name}.json", folder, "Objects365", {})


def _coco_like(
    path: epath.Path, pictures: epath.Path, source: str, captions: dict[Any, list[str]]
) -> Iterator[Read]:
    classes = by_id(listed(path, "categories"))
    things = grouped(listed(path, "annotations"), "image_id")

    def box(thing: dict, size: tuple[int, int], turn: int) -> Box | None:
        if thing.get("iscrowd"):
            return None
        number = id_of(thing, "category_id")
        if number not in classes:
            raise BadCase(f"there is no category {shorten(number, 60)}")
        left, top, width, height = map(float, thing["bbox"])
        label = text_of(classes[number], "name")
        return place(label, *turned((left, top, left + width, top + height), size, turn))

    def make(key: str, image: Any) -> Case:
        number = id_of(image, "id")
        picture = inside(pictures, image["file_name"])
        size = (image["width"], image["height"])
        stored, turn = _head(picture)
        if size == stored[::-1] != stored and turn > MIRRORED:
            turn = 1  # measured on the image as it is shown
        boxes = largest([box(thing, size, turn) for thing in things.get(number, [])])
        told = [text for text in captions.get(number, ()) if text.strip()]
        caption = sound(told[0]) if told else labels(boxes)
        values = {"caption": caption, "boxes": write_boxes(boxes), "answer": picture}
        return Case(key, GROUNDED, values, source, coco_licence(image))

    images = listed(path, "images")
    return to_cases(((f"image-{n}", image) for n, image in enumerate(images)), make)


def open_images_boxes(folder: epath.Path, split: str) -> Iterator[Read]:
    """`oidv6-train-annotations-bbox.csv` (or `train-…`), `class-descriptions-boxable.csv` and
    `train/ID.jpg` (storage.googleapis.com/openimages, "data formats"); captions are made of labels.
    """
    found = sorted(matching(folder, f"*{split}-annotations-bbox.csv"))
    if not found:
        raise UserError(f"{folder} has no *{split}-annotations-bbox.csv; put it there.")
    classes = csv_rows(folder / "class-descriptions-boxable.csv")
    names = dict(row[:2] for row in classes if len(row) >= 2)
    table = csv_rows(found[0])
    header = next(table, [])
    rows = (dict(zip(header, row, strict=False)) for row in table)

    def make(key: str, things: Any) -> Case:
        picture = inside(folder / split, f"{key}.jpg")
        size, turn = _head(picture)
        boxes = largest([_open_images_box(thing, names, size, turn) for thing in things])
        values = {"caption": labels(boxes), "boxes": write_boxes(boxes), "answer": picture}
        return Case(key, GROUNDED, values, "Open Images", "CC-BY-4.0")

    return to_cases(grouped(rows, "ImageID").items(), make)


def _open_images_box(
    thing: dict[str, str], names: dict[str, str], size: tuple[int, int], turn: int
) -> Box | None:
    if thing["IsGroupOf"] == "1":
        return None
    left, top, right, bottom = (float(thing[name]) for name in ("XMin", "YMin", "XMax", "YMax"))
    width, height = size
    box = (left * width, top * height, right * width, bottom * height)
    return place(names[thing["LabelName"]].lower(), *turned(box, size, turn))


def _head(picture: epath.Path) -> tuple[tuple[int, int], int]:
    """Width and height of an image file as stored, and how EXIF turns it."""
    try:
        return picture_head(picture)
    except (OSError, ValueError):
        raise BadCase(f"{shorten(picture.name, 60)} is missing or no image") from None
