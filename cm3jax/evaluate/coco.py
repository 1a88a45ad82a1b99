"""Captions in COCO's format, and which of them are asked."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.files import digest, read_json


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption of a picture."""

    id: int
    """Of the annotation."""
    text: str
    file: str
    """Name of the picture's file."""


@dataclasses.dataclass(frozen=True)
class Captions:
    """The captions that are asked."""

    chosen: tuple[Caption, ...]
    total: int
    """Captions in the file."""
    seed: int
    """Of the choice."""
    file: str
    """Name of the caption file."""

    @property
    def fingerprint(self) -> str:
        """Of everything that is asked."""
        return digest(*(part for one in self.chosen for part in (str(one.id), one.text)))


def read_captions(path: epath.PathLike, count: int | None = None, seed: int = 0) -> Captions:
    """`count` captions of a `captions_val2014.json`, drawn without replacement, in order of id.

    Which ones depends on the file and the seed alone; all, where there are no more or `count` is
    None. Raises `UserError` for a file that is missing, damaged or of another form.
    """
    value = read_json(path, "the caption file")
    try:
        files = {picture["id"]: picture["file_name"] for picture in value["images"]}
        every = sorted(
            (_caption(one, files) for one in value["annotations"]), key=lambda one: one.id
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not COCO's format ({error!r}); `images` need id and file_name, "
            "`annotations` id, image_id and caption."
        ) from None
    if not every or (count is not None and count < 1):
        raise UserError(f"{path} holds {len(every)} captions and {count} are asked; ask for some.")
    order = np.random.default_rng(seed).permutation(len(every))[:count]
    chosen = tuple(every[place] for place in sorted(order.tolist()))
    return Captions(chosen, len(every), seed, epath.Path(path).name)


def _caption(one: Any, files: dict[int, str]) -> Caption:
    return Caption(int(one["id"]), str(one["caption"]).strip(), files[one["image_id"]])
