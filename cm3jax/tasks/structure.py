"""From structure to image: maps that are computed here (Canny edges, scribbles) or given."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from cm3jax.tasks.captions import coco_captions
from cm3jax.tasks.edges import canny, scribble
from cm3jax.tasks.records import Read, held_back, inside, json_lines, text_of, to_cases
from cm3jax.tasks.task import Case, Derived, Overlay, Skipped, Task


def _task(name: str, what: str) -> Task:
    return Task(
        name,
        templates=(
            f"Make high quality image from {what}<break>{{image}}<break>{{caption}}"
            "<break>{answer}",
            f"Draw {what} as a picture<break>{{image}}<break>{{caption}}<break>{{answer}}",
        ),
    )


SEGMENTATION = _task("segmentation", "a segmentation map")
EDGES = _task("edges", "canny edge features")
SCRIBBLE = _task("scribble", "children's scribbles")
DEPTH = _task("depth", "depth features")
HED = _task("hed", "hed features")
OPENPOSE = _task("openpose", "openpose features")
NORMALS = _task("normals", "3D norm features")


def given_maps(task: Task, folder: epath.Path, split: str) -> Iterator[Read]:
    """`prompt.json`, lines of `{"source": MAP, "target": PICTURE, "prompt": CAPTION}`, and the
    files that they name (github.com/lllyasviel/ControlNet, docs/train.md). All maps of an image
    are in one split."""

    def make(key: str, record: Any) -> Case:
        caption = text_of(record, "prompt")
        source, target = (inside(folder, record[name]) for name in ("source", "target"))
        values = {"caption": caption, "image": Overlay(source, target), "answer": target}
        return Case(key, task, values)

    pictures: dict[str, list[tuple[str, Any]]] = {}
    for key, record in json_lines(folder / "prompt.json"):
        target = record.get("target") if isinstance(record, dict) else None
        pictures.setdefault(target if isinstance(target, str) else key, []).append((key, record))
    chosen = held_back(pictures.values(), split)
    return to_cases((line for group in chosen for line in group), make)


def _from_coco(
    task: Task, compute: Callable[[np.ndarray], np.ndarray], folder: epath.Path, split: str
) -> Iterator[Read]:
    """COCO's images and captions, with a map computed from each image."""
    for case in coco_captions(folder, split):
        if isinstance(case, Skipped):
            yield case
            continue
        picture = case.values["image"]
        values = {
            "caption": case.values["answer"],
            "image": Derived(picture, compute),
            "answer": picture,
        }
        yield dataclasses.replace(case, task=task, values=values)


coco_canny = partial(_from_coco, EDGES, canny)
coco_scribble = partial(_from_coco, SCRIBBLE, scribble)
