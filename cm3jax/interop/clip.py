"""HF CLIP folders (any ViT size) to our retrieval encoder, with their own text tokenizer.

Pictures are brought to size as the folder's processor does it; ours differs for transparent ones
alone, which stand on white here.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm3jax.checkpoint import write_export
from cm3jax.config import ClipConfig, Experiment
from cm3jax.errors import UserError
from cm3jax.experiment_io import build
from cm3jax.interop import folders
from cm3jax.interop.layout import Key, Place, imported, match
from cm3jax.retrieval.clip import CLIP, PIXEL_MEAN, PIXEL_STD, hf_name
from cm3jax.tokenizers import huggingface
from cm3jax.tokenizers.text import TextTokenizer

_UNUSED = {"embeddings.position_ids": "computed here"}
_FILTERS = {1: "lanczos", 3: "bicubic"}
"""Pillow's numbers of filters."""


@dataclasses.dataclass(frozen=True)
class Text:
    """What decides the text tower, with the defaults of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Vision:
    """What decides the picture tower, with the defaults of transformers."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


def convert(source: Path, out: Path) -> list[Key]:
    """Import a folder as the exported run of an encoder; returns the report, also in `out`."""
    config = read_config(source)
    where, found = places(config), folders.read_tensors(source)
    report = match(where, found, _UNUSED, str(source))
    with folders.new_folder(out) as folder:
        model = huggingface.read(source, range(config.text_vocab - 2))
        text = TextTokenizer(model)
        _require_ends(source, model, config)
        text.save(folder)
        outputs = {place.path: imported(place, found) for place in where}
        experiment = Experiment(name="clip", learner="clip", clip=config)
        write_export(folder, experiment, outputs, 0, {"text": text.fingerprint})
        folders.write_report(folder, report)
    return report


def places(config: ClipConfig) -> list[Place]:
    """Where our arrays lie in the state dict of HF's `CLIPModel`."""
    ids, size = jnp.zeros((1, 4), jnp.int32), config.image_size
    pixels = jnp.zeros((1, size, size, 3))
    shapes = nn.unbox(jax.eval_shape(CLIP(config).init, jax.random.key(0), ids, pixels))
    found = []
    for path, leaf in jax.tree.leaves_with_path(shapes["params"]):
        names = [key.key for key in path]
        kernel = {2: "matrix", 4: "convolution"}.get(leaf.ndim, "same")
        kind = kernel if names[-1] == "kernel" else "same"
        found.append(Place("/".join(["params", *names]), leaf.shape, (hf_name(names),), kind))
    return found


def read_config(folder: Path) -> ClipConfig:
    """Our config of a folder's two JSON files; `UserError` for what ours cannot be."""
    path = folder / "config.json"
    values = folders.read_object(path, "the config")
    if values.get("model_type") != "clip":
        raise UserError(f"{path} is of a {values.get('model_type')!r} model; give a CLIP's folder.")
    text = _part(Text, values.get("text_config") or {}, f"{path}: text_config")
    vision = _part(Vision, values.get("vision_config") or {}, f"{path}: vision_config")
    same = text.hidden_act == vision.hidden_act
    usual = {text.layer_norm_eps, vision.layer_norm_eps} == {1e-5} and vision.num_channels == 3
    if not (same and usual and text.hidden_act in ("quick_gelu", "gelu")):
        raise UserError(
            f"{path}: both towers must have one activation (quick_gelu or gelu), layer_norm_eps "
            "1e-5 and 3 colours; give a CLIP like that."
        )
    return ClipConfig(
        image_size=vision.image_size,
        patch=vision.patch_size,
        vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        vision_ffn=_unless_usual(vision.intermediate_size, vision.hidden_size),
        text_width=text.hidden_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        text_ffn=_unless_usual(text.intermediate_size, text.hidden_size),
        text_context=text.max_position_embeddings,
        text_vocab=text.vocab_size,
        width=build(int, values.get("projection_dim", 512), f"{path}: projection_dim"),
        activation=text.hidden_act,
        resize=_read_processor(folder, vision.image_size),
    )


def _part(kind: type, values: Any, what: str) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    known = {k: v for k, v in values.items() if k in names} if isinstance(values, dict) else values
    return build(kind, known, what)


def _unless_usual(hidden: int, width: int) -> int:
    return 0 if hidden == 4 * width else hidden


def _read_processor(folder: Path, size: int) -> str:
    """The filter of `preprocessor_config.json`; `UserError` if it does anything that ours can't."""
    path = folder / "preprocessor_config.json"
    values = folders.read_object(path, "the picture processor's config")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    edge, crop = values.get("size", size), values.get("crop_size", size)
    edge = edge.get("shortest_edge") if isinstance(edge, dict) else edge
    crop = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else [crop] * 2
    ways = {
        "steps": all(values.get(step, True) is True for step in steps),
        "size": edge == size and crop == [size, size],
        "resample": values.get("resample", 3) in _FILTERS,
        "rescale_factor": _near([values.get("rescale_factor", 1 / 255)], [1 / 255]),
        "image_mean": _near(values.get("image_mean", PIXEL_MEAN), PIXEL_MEAN),
        "image_std": _near(values.get("image_std", PIXEL_STD), PIXEL_STD),
    }
    for name, usual in ways.items():
        if not usual:
            raise UserError(
                f"{path}: its {name} are not CLIP's (shorter side to {size} by Lanczos or bicubic, "
                "centre crop, CLIP's mean and deviation); give a CLIP with those."
            )
    return _FILTERS[values.get("resample", 3)]


def _near(given: Any, wanted: Any) -> bool:
    try:
        return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(given, wanted, strict=True))
    except (TypeError, ValueError):
        return False


def _require_ends(source: Path, model: bytes, config: ClipConfig) -> None:
    """Begin and end must be the last two ids: the end is found as the highest one."""
    found, wanted = huggingface.ends(model), [config.text_vocab - 2, config.text_vocab - 1]
    if found != wanted:
        raise UserError(
            f"{source}: its tokenizer puts {found} around a text, not {wanted}, the last two ids "
            "of text_config.vocab_size; give the tokenizer of these weights."
        )
