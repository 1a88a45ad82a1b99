"""What a batch and a model ask of a mesh: equal shares of rows and of attention's heads."""

import jax

from cm3jax.config import DecoderConfig
from cm3jax.errors import UserError


def require_divisible(batch: int, parts: int, shards: int) -> None:
    """Refuse a global batch that cannot be cut into `shards` equal shares, each of `parts` equal
    parts to accumulate."""
    if batch % (shards * parts):
        raise UserError(
            f"data.batch={batch} cannot be cut into {shards} equal shares"
            f"{f' of {parts} equal parts' if parts > 1 else ''}; make it a multiple of "
            f"{shards * parts}, or set mesh.data{' or optim.accumulate' if parts > 1 else ''}."
        )


def require_attention(model: DecoderConfig, mesh: jax.sharding.Mesh) -> None:
    """Refuse a kernel in `model.attention` that is not for the mesh's devices, or whose heads these
    cannot share equally."""
    if model.attention in ("auto", "xla"):
        return
    # CPUs interpret what is written in Pallas, so that it can be tried without the hardware.
    known = {"cudnn": ("gpu",), "splash": ("tpu", "cpu"), "triton": ("gpu", "cpu")}[model.attention]
    platform = mesh.devices.flat[0].platform
    if platform not in known:
        raise UserError(
            f"model.attention={model.attention} is for a {known[0]}, but jax found only "
            f"{platform}; use model.attention=xla."
        )
    tensor = mesh.shape["tensor"]
    if model.groups % tensor:
        raise UserError(
            f"model.attention={model.attention} cannot share {model.groups} heads of keys and "
            f"values equally among mesh.tensor={tensor} devices; change that, or use "
            "model.attention=xla."
        )
