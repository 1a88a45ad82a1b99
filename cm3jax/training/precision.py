"""Training whose matrix products are of int8 or fp8, by qwix: the extra `quantised`."""

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp

from cm3jax.model.decoder import Decoder
from cm3jax.model.quantised import require_qwix

_LAYERS = r".*(query|key|value|out|up|gate|down)"
"""The matrices of layers by their modules' paths; attention's own products and the head stay."""


def require_quantiser(kind: str) -> None:
    """Raise `UserError` unless qwix is there; an empty kind needs nothing."""
    if kind:
        require_qwix(f"model.quantised={kind}")


def quantised(model: Decoder, kind: Literal["", "int8", "fp8"]) -> Decoder:
    """The model whose rows go through products of the layers' matrices in this type; parameters
    and their gradients stay float32. Inputs, matrices and gradients are scaled by their largest
    absolute value, per row or column of a product. An empty kind gives the model itself.
    `UserError` as `require_quantiser`."""
    if not kind:
        return model
    require_quantiser(kind)
    import qwix

    model = model.clone(config=dataclasses.replace(model.config, quantised=kind))
    return qwix.quantize_model(model, _provider(kind))


@functools.cache
def _provider(kind: Literal["int8", "fp8"]) -> Any:
    import qwix

    # fp8 as usual: more digits forward, more range for gradients.
    forward, backward = {
        "int8": (jnp.int8, jnp.int8),
        "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
    }[kind]
    types = {"weight_qtype": forward, "act_qtype": forward, "bwd_qtype": backward}
    return qwix.QtProvider([qwix.QtRule(module_path=_LAYERS, **types)])
