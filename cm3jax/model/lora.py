"""Low-rank corrections of a model's matrices (LoRA, arXiv 2106.09685) as part of its parameters.

`layers.Projection` adds them; here they are taken out of a tree of parameters, or put in.
"""

from collections.abc import Mapping
from typing import Any

_PREFIX = "lora_"


def strip(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the same model without corrections."""
    return {
        name: strip(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if not name.startswith(_PREFIX)
    }


def load_into(params: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the values of `base`, where that has one: only corrections may be missing."""
    return {
        name: load_into(value, base[name]) if isinstance(value, Mapping) else base.get(name, value)
        for name, value in params.items()
    }


def merged(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """`strip` corrections, which are added to the kernels that they correct, all of them stacked
    over layers; `scale` is what multiplies them."""
    out = {
        name: merged(value, scale) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if not name.startswith(_PREFIX)
    }
    if "lora_down" in params:
        down, up = params["lora_down"], params["lora_up"]
        layers, rank = up.shape[:2]
        product = down.reshape(layers, -1, rank) @ up.reshape(layers, rank, -1)
        out["kernel"] = params["kernel"] + scale * product.reshape(params["kernel"].shape)
    return out
