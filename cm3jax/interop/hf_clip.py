"""HF CLIP folders (any ViT size) to our retrieval encoder, with their own text tokenizer.

Images are brought to size as the folder's processor does it, with two differences: transparent
ones are put on white here, and the square is cut out while resizing instead of afterwards, by which
0.05 % of the bytes differ, by 2 at most, and vectors by up to 2e-4.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cm3jax.config import ClipConfig, Experiment
from cm3jax.errors import UserError
from cm3jax.interop import fields, folders, processors
from cm3jax.interop.layout import ArrayKind, Key, Place, imported, match
from cm3jax.io.experiment_json import build
from cm3jax.retrieval.clip_encoder import CLIP, PIXEL_MEAN, PIXEL_STD, hf_name
from cm3jax.tokenizers import huggingface
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.exported_run import LoadedRun, write_export

_UNUSED = {"embeddings.position_ids": "computed here"}
TOWER = {
    **fields.TRANSFORMERS,
    "projection_dim": "the whole model's counts",
    "pad_token_id": "what follows the end of a text is never attended to",
    "bos_token_id": "the tokenizer says how texts begin",
    "torch_dtype": "how weights are stored: this encoder computes in float32",
    "dtype": "how weights are stored: this encoder computes in float32",
}
"""Keys of a tower's config that change no number."""
_WHOLE = {
    **TOWER,
    "logit_scale_init_value": "the weights hold the scale",
    "eos_token_id": "of no tower",
}
_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclasses.dataclass(frozen=True)
class TextTowerFields:
    """What decides the text tower, with the defaults of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    pruned_heads: dict | None = None


@dataclasses.dataclass(frozen=True)
class VisionTowerFields:
    """What decides the image tower, with the defaults of transformers."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pruned_heads: dict | None = None


_KINDS = {"text_config": TextTowerFields, "vision_config": VisionTowerFields}


def convert(source: Path, out: Path) -> list[Key]:
    """Import a folder as the exported run of an encoder; returns the report, also in `out`."""
    config = read_clip_config(source)
    where, found = clip_places(config), folders.read_tensors(source)
    report = match(where, found, _UNUSED, str(source))
    with folders.new_folder(out) as folder:
        model = huggingface.read_tokenizer(source, range(config.text_vocab - 2))
        text = TextTokenizer(model)
        _require_ends(source, model, config)
        text.save(folder)
        outputs = {place.path: imported(place, found) for place in where}
        experiment = Experiment(name="clip", learner="clip", clip=config)
        run = LoadedRun(experiment, {}, 0, {"text": text.fingerprint})
        write_export(folder, run, outputs)
        folders.write_tensor_report(folder, report)
    return report


_KERNELS: dict[int, ArrayKind] = {2: "matrix", 4: "convolution"}
"""How HF stores kernels, by their number of axes."""


def clip_places(config: ClipConfig) -> list[Place]:
    """The places of our arrays in the state dict of HF's `CLIPModel`."""
    size = config.image_size
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(CLIP(config).init, jax.random.key(0), ids, pixels))
    found = []
    for path, leaf in jax.tree.leaves_with_path(shapes["params"]):
        names = [key.key for key in path]
        kind = _KERNELS.get(leaf.ndim, "same") if names[-1] == "kernel" else "same"
        found.append(Place("/".join(["params", *names]), leaf.shape, (hf_name(names),), kind))
    return found


def read_clip_config(folder: Path) -> ClipConfig:
    """Our config of a folder's two JSON files; `UserError` for what ours cannot be."""
    path = folder / "config.json"
    values = folders.read_object(path, "the config")
    if values.get("model_type") != "clip":
        raise UserError(f"{path} is of a {values.get('model_type')!r} model; give a CLIP's folder.")
    read = {"projection_dim", *_KINDS, *(f"{part}_dict" for part in _KINDS)}
    values = fields.select(values, read, _WHOLE, str(path))
    text = _part("text_config", values, path)
    vision = _part("vision_config", values, path)
    _require(text, vision, path)
    width = build(int, values.get("projection_dim", 512), f"{path}: projection_dim")
    fields.require_sizes({"projection_dim": width}, str(path))
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
        width=width,
        activation=text.hidden_act,
        resize=_resize(folder, vision.image_size),
    )


def _part(name: str, values: dict[str, Any], path: Path) -> Any:
    """A tower's fields. As in transformers, what `NAME_dict` says goes before `NAME`, and so do
    the defaults of what it leaves out."""
    name = f"{name}_dict" if values.get(f"{name}_dict") is not None else name
    kind, what = _KINDS[name.removesuffix("_dict")], f"{path}: {name}"
    read = {field.name for field in dataclasses.fields(kind)}
    given = values.get(name)
    return build(kind, fields.select({} if given is None else given, read, TOWER, what), what)


def _require(text: TextTowerFields, vision: VisionTowerFields, path: Path) -> None:
    for name, tower in (("text_config", text), ("vision_config", vision)):
        what, found = f"{path}: {name}", dataclasses.asdict(tower)
        usual = {
            "hidden_act": _ACTIVATIONS,
            "layer_norm_eps": (1e-5,),
            "num_channels": (3,),
            "pruned_heads": ({}, None),
        }
        fields.require_values(found, usual, what)
        fields.require_sizes(found, what)
        if tower.hidden_size % tower.num_attention_heads:
            raise UserError(f"{what}: num_attention_heads does not divide hidden_size; correct it.")
    if text.hidden_act != vision.hidden_act:
        raise UserError(
            f"{path}: its towers have the activations {text.hidden_act} and {vision.hidden_act}, "
            "and this project's have one activation; give a CLIP like that."
        )
    # transformers reads a text's vector where this id first is; under 2, an old convention,
    # where the highest one is.
    last = text.vocab_size - 1
    if text.eos_token_id not in (2, last):
        raise UserError(
            f"{path}: text_config has eos_token_id={text.eos_token_id}, and this project reads a "
            f"text's vector at the last id, {last}; give a CLIP like that."
        )


def _unless_usual(hidden: int, width: int) -> int:
    return 0 if hidden == 4 * width else hidden


def _resize(folder: Path, size: int) -> Literal["lanczos", "bicubic"]:
    """The filter that brings images to size."""
    found = processors.read_processor(folder)
    if found is None:
        raise UserError(
            f"{folder} holds neither processor_config.json nor preprocessor_config.json, which say "
            "how images are brought to size; put it beside the weights."
        )
    path, values = found
    usual = processors.Usual("CLIP", size, 3, (1, 3), (1 / 255,), PIXEL_MEAN, PIXEL_STD)
    return processors.check(values, usual, path)


def _require_ends(source: Path, model: bytes, config: ClipConfig) -> None:
    """Begin and end must be the last two ids: the end is found as the highest one."""
    found, wanted = huggingface.ends(model), [config.text_vocab - 2, config.text_vocab - 1]
    if found != wanted:
        raise UserError(
            f"{source}: its tokenizer puts {found} around a text, not {wanted}, the last two ids "
            "of text_config.vocab_size; give the tokenizer of these weights."
        )
