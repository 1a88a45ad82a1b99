"""VQGANs of the taming family (Chameleon's among them) <-> ours: names, files and configs."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import yaml

from cm3jax.config import Experiment, VocabConfig, VQGANConfig
from cm3jax.errors import UserError
from cm3jax.interop import fields, folders, taming
from cm3jax.interop.layout import ArrayKind, Key, Place, imported, match
from cm3jax.interop.state_dicts import read_state_dict
from cm3jax.io import safetensors_file
from cm3jax.io.experiment_json import build
from cm3jax.io.texts import read_regular
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.training.exported_run import LoadedRun, write_export

_USES = "codebook/quantiser/uses"
"""Only ours has it: how often training chose each code of late."""
UNUSED = {
    "loss.": "of its training",
    "quantize.embedding.cluster_size": "a moving average of its training",
    "quantize.embedding.embed_avg": "a moving average of its training",
}
"""Why tensors of a VQGAN's own checkpoint are not used; the last two are taming's `EMAVQ`'s."""
_LEVEL = re.compile(r"(down|up)_(\d+)_(block|attn)_(\d+)|(down|up)_(\d+)_(\w+sample)")


@dataclasses.dataclass(frozen=True)
class VQGANFields:
    """The fields of a config that decide the network, under HF's names and with its defaults."""

    embed_dim: int = 256
    num_embeddings: int = 8192
    double_latent: bool = False
    latent_channels: int = 256
    resolution: int = 512
    in_channels: int = 3
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] | None = None
    attn_type: str | None = "vanilla"
    out_channels: int = 3


_HARMLESS = {
    **fields.TRANSFORMERS,
    "dropout": "of training",
    "beta": "of the training loss",
    "dtype": "how weights are stored: image tokenizers compute in float32",
    "torch_dtype": "how weights are stored: image tokenizers compute in float32",
}


def read_vqgan_config(values: Mapping[str, Any], what: str) -> VQGANConfig:
    """Our config of HF's `vq_config`; `UserError` for what ours cannot be."""
    names = [field.name for field in dataclasses.fields(VQGANFields)]
    foreign = build(VQGANFields, fields.select(values, names, _HARMLESS, what), what)
    found = dataclasses.asdict(foreign)
    usual = {
        "double_latent": (False,),
        "in_channels": (3,),
        "out_channels": (3,),
        "attn_type": ("vanilla", "none", None),
    }
    fields.require_values(found, usual, what)
    fields.require_sizes(found, what)
    if foreign.base_channels % 32:
        raise UserError(
            f"{what} has base_channels={foreign.base_channels}, which is not a multiple of 32; "
            "give a VQGAN of taming's family."
        )
    sides = {foreign.resolution >> level for level in range(len(foreign.channel_multiplier))}
    vanilla = foreign.attn_type == "vanilla"
    attended = sides & set(foreign.attn_resolutions or ()) if vanilla else set()
    same = foreign.latent_channels == foreign.embed_dim
    return VQGANConfig(
        image_size=foreign.resolution,
        channels=foreign.base_channels,
        multipliers=foreign.channel_multiplier,
        blocks=foreign.num_res_blocks,
        attention=vanilla,
        attention_sides=tuple(sorted(attended)),
        codes=foreign.num_embeddings,
        code_width=foreign.embed_dim,
        latent_width=0 if same else foreign.latent_channels,
    )


def write_vqgan_config(config: VQGANConfig) -> dict[str, Any]:
    """The inverse of `read_vqgan_config`; `UserError` for a network of another family."""
    if config.kernel != 3 or config.patch != 1 or config.channels % 32:
        raise UserError(
            f"an image tokenizer with vqgan.kernel={config.kernel}, vqgan.patch={config.patch} and "
            f"vqgan.channels={config.channels} is none of taming's family; it needs kernel 3, "
            "patch 1 and a multiple of 32."
        )
    foreign = VQGANFields(
        embed_dim=config.code_width,
        num_embeddings=config.codes,
        latent_channels=config.latents,
        resolution=config.image_size,
        base_channels=config.channels,
        channel_multiplier=config.multipliers,
        num_res_blocks=config.blocks,
        attn_resolutions=config.attention_sides or None,
        attn_type="vanilla" if config.attention else "none",  # transformers refuses null
    )
    return dataclasses.asdict(foreign)


def vqgan_places(config: VQGANConfig, prefix: str = "", decoder: bool = True) -> list[Place]:
    """The places of our arrays in a state dict whose names begin with `prefix`.

    Without `decoder` only what HF keeps of it: its first convolution.
    """
    found = []
    for name, shape in _shapes(config).items():
        kept = decoder or "/decoder/" not in name or "/post_quant_conv/" in name
        if name != _USES and kept:
            kind: ArrayKind = "convolution" if name.endswith("kernel") else "same"
            found.append(Place(name, shape, (prefix + _foreign_name(name),), kind))
    return found


@functools.cache
def _shapes(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    size = config.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(VQGAN(config).init, jax.random.key(0), pixels))
    leaves = jax.tree.leaves_with_path(shapes)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}


def _foreign_name(name: str) -> str:
    if name.endswith("/quantiser/entries"):
        return "quantize.embedding.weight"
    _, tower, *modules, leaf = name.split("/")
    joined = _LEVEL.sub(lambda found: ".".join(filter(None, found.groups())), ".".join(modules))
    leaf = "bias" if leaf == "bias" else "weight"
    outside = modules[0] in ("quant_conv", "post_quant_conv")
    return f"{joined}.{leaf}" if outside else f"{tower}.{joined}.{leaf}"


def write_tokenizer(
    folder: Path,
    config: VQGANConfig,
    where: list[Place],
    found: Mapping[str, safetensors_file.Tensor],
) -> None:
    """Write an image tokenizer that `cm3jax.learners.vqgan.load` reads."""
    vocab = VocabConfig(image_codes=config.codes, grid=config.grid)
    experiment = Experiment(name="vqgan", learner="vqgan", vqgan=config, vocab=vocab)
    outputs = {place.path: imported(place, found) for place in where}
    outputs[_USES] = safetensors_file.whole(np.ones(config.codes, np.float32))
    write_export(folder, LoadedRun(experiment, {}, 0, {}), outputs)


def convert(source: Path, out: Path, config: Path) -> list[Key]:
    """A VQGAN with its decoder, from safetensors or a training checkpoint, to an exported run.

    `config` is taming's YAML or HF's JSON. Returns the report, which is also in the folder.
    """
    ours, found = read_vqgan(source, config)
    where = vqgan_places(ours)
    report = match(where, found, UNUSED, str(source))
    with folders.new_folder(out) as folder:
        write_tokenizer(folder, ours, where, found)
        folders.write_tensor_report(folder, report)
    return report


def read_vqgan(
    source: Path, config: Path
) -> tuple[VQGANConfig, dict[str, safetensors_file.Tensor]]:
    """Our config and the tensors of a VQGAN's file."""
    ours = read_vqgan_config(_settings(config), str(config))
    return ours, read_state_dict(source, "the VQGAN's file")


def _settings(path: Path) -> dict[str, Any]:
    """HF's `vq_config` of its own JSON, of a model's, or of taming's YAML."""
    try:
        values = yaml.safe_load(read_regular(path))  # reads JSON too, and makes plain values only
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(
            f"the config {path} can't be read ({type(error).__name__}); give the VQGAN's YAML or "
            "JSON as --config."
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"the config {path} is not an object; give the VQGAN's YAML or JSON.")
    if "model" in values:
        return taming.settings(values["model"], f"the config {path}")
    return values.get("vq_config", values)
