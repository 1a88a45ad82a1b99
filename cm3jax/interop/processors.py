"""How a folder's images are brought to size, as its image processor's config says."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from cm3jax.errors import UserError
from cm3jax.interop import fields, folders

FILE = "preprocessor_config.json"
FILTERS: dict[int, Literal["lanczos", "bicubic"]] = {1: "lanczos", 3: "bicubic"}
"""Pillow's numbers of filters."""

_HARMLESS = {
    "processor_class": "a name",
    "do_convert_rgb": "images always become RGB here",
    "data_format": "the order of axes",
    "input_data_format": "the order of axes",
    "device": "where it computes",
    "return_tensors": "the kind of array",
    "disable_grouping": "the order of work",
    "image_seq_length": "a number of places in transformers' prompts",
}
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_OTHER_STEPS = ("do_pad", "default_to_square", "use_square_size", "do_flip_channel_order")
_READ = (
    *_STEPS,
    *_OTHER_STEPS,
    "size",
    "crop_size",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
    "image_processor_type",
    "feature_extractor_type",
    "pad_size",
)


@dataclasses.dataclass(frozen=True)
class Usual:
    """What an architecture's processor does."""

    name: str
    """How its classes begin: `CLIP` of `CLIPImageProcessorFast`."""
    size: int
    """Pixels along one side of what the network reads."""
    resample: int
    """Pillow's number of the filter where the config names none."""
    filters: tuple[int, ...]
    """Pillow's numbers of the filters that this project has for it."""
    factors: tuple[float, ...]
    """What bytes may be multiplied by."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_processor(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The config of a folder's image processor and its file; None if it has none.

    As in transformers 5, the part `image_processor` of `processor_config.json` goes before
    `preprocessor_config.json`.
    """
    whole = folder / "processor_config.json"
    if whole.exists():
        values = folders.read_object(whole, "the processor's config")
        if "image_processor" in values:
            return whole, values["image_processor"]
    path = folder / FILE
    if path.exists():
        return path, folders.read_object(path, "the image processor's config")
    return None


def chameleon(size: int) -> dict[str, Any]:
    """The config under which transformers brings images to size as this project does."""
    return {
        "image_processor_type": "ChameleonImageProcessor",
        **dict.fromkeys(_STEPS, True),
        "do_convert_rgb": True,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 1,
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }


def check(values: Any, usual: Usual, path: Path) -> Literal["lanczos", "bicubic"]:
    """The name of the filter; `UserError` if the processor does anything that ours can't."""
    values = fields.select(values, _READ, _HARMLESS, str(path))
    size = usual.size
    edge, crop = values.get("size", size), values.get("crop_size", size)
    edge = edge.get("shortest_edge") if isinstance(edge, dict) else edge
    crop = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else [crop] * 2
    kinds = [values.get(key) or "" for key in ("image_processor_type", "feature_extractor_type")]
    resample = values.get("resample", usual.resample)
    factor = values.get("rescale_factor", usual.factors[0])
    ways = {
        "class": all(not k or str(k).startswith(usual.name) for k in kinds),
        "steps": all(values.get(step, True) is True for step in _STEPS)
        and not any(values.get(step) for step in _OTHER_STEPS),
        "size": edge == size and crop == [size, size],
        "resample": type(resample) is int and resample in usual.filters,
        "rescale_factor": any(_near([factor], [known]) for known in usual.factors),
        "image_mean": _near(values.get("image_mean", usual.mean), usual.mean),
        "image_std": _near(values.get("image_std", usual.std), usual.std),
    }
    for name, same in ways.items():
        if not same:
            filters = " or ".join(FILTERS[number].capitalize() for number in usual.filters)
            raise UserError(
                f"{path}: its {name} is not {usual.name}'s (shorter side to {size} by {filters}, "
                f"centre crop, {usual.name}'s mean and deviation); give a {usual.name} with those."
            )
    return FILTERS[resample]


def _near(given: Any, wanted: Any) -> bool:
    try:
        return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(given, wanted, strict=True))
    except (TypeError, ValueError):
        return False
