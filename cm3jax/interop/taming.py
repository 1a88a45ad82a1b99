"""taming-transformers' YAML of a VQGAN, key by key, as HF's `vq_config`.

Its relatives (latent-diffusion, Make-A-Scene) write the same keys and a few more.
"""

from typing import Any

from cm3jax.errors import UserError
from cm3jax.interop import fields
from cm3jax.io.experiment_json import build

_KINDS = ("VQModel", "VQModelInterface", "VQNoDiscModel", "EMAVQ")
"""Classes with one arithmetic, whatever they train by."""

_MODEL = {"base_learning_rate": "of training", "target": "read", "params": "read"}
_PARAMS = {
    "lossconfig": "of training",
    "ckpt_path": "what training began with",
    "ignore_keys": "what training began with",
    "image_key": "of training's data",
    "colorize_nlabels": "of training's images",
    "monitor": "of training",
    "scheduler_config": "of training",
    "lr_g_factor": "of training",
    "learning_rate": "of training",
    "batch_resize_range": "of training",
    "sane_index_shape": "the shape of the codes, not their values",
}
_NAMES = {
    "double_z": "double_latent",
    "z_channels": "latent_channels",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "out_ch": "out_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "attn_type": "attn_type",
}
_DEFAULTS = {"ch_mult": (1, 2, 4, 8), "double_z": True}
_FIXED = {
    "resamp_with_conv": (True,),
    "tanh_out": (False, None),
    "give_pre_end": (False, None),
    "use_linear_attn": (False, None),
    "use_timestep": (False, None),
}
_WHOLE = {"remap": (None,), "use_ema": (False, None)}


def settings(model: Any, what: str) -> dict[str, Any]:
    """HF's `vq_config` of the part `model`; `UserError`, which calls the file `what`, for keys that
    are missing, unknown, or change the arithmetic to one that ours has not."""
    model = fields.select(model, _MODEL, {}, f"{what}: model")
    kind = build(str, model.get("target", _KINDS[0]), f"{what}: model.target").rpartition(".")[2]
    fields.require_values({"target": kind}, {"target": _KINDS}, f"{what}: model")
    where = f"{what}: model.params"
    read = ("ddconfig", "n_embed", "embed_dim", *_WHOLE)
    params = fields.select(model.get("params"), read, _PARAMS, where)
    fields.require_values(params, _WHOLE, where)
    parts = fields.select(
        _get(params, "ddconfig", where),
        (*_NAMES, *_FIXED),
        {"dropout": "of training"},
        f"{where}.ddconfig",
    )
    fields.require_values(parts, _FIXED, f"{where}.ddconfig")
    parts = _DEFAULTS | parts
    needed = {"z_channels", "resolution", "in_channels", "out_ch", "ch", "num_res_blocks"}
    for key in sorted(needed | {"attn_resolutions"}):
        _get(parts, key, f"{where}.ddconfig")
    found = {_NAMES[key]: value for key, value in parts.items() if key in _NAMES}
    sizes = {"n_embed": "num_embeddings", "embed_dim": "embed_dim"}
    return found | {theirs: _get(params, ours, where) for ours, theirs in sizes.items()}


def _get(values: dict[str, Any], key: str, what: str) -> Any:
    if key not in values:
        raise UserError(f"{what} has no {key}; give the VQGAN's own YAML or JSON as --config.")
    return values[key]
