"""What an experiment asks of its mesh: equal shares of the batch and of attention's heads."""

import jax

from cm3jax.config import Experiment
from cm3jax.errors import UserError


def require_divisible(experiment: Experiment, shards: int) -> None:
    """Refuse a batch that cannot be cut into equal shares of equal parts."""
    batch, parts = experiment.data.batch, experiment.optim.accumulate
    if batch % (shards * parts):
        raise UserError(
            f"data.batch={batch} cannot be cut into {shards} equal shares"
            f"{f' of {parts} equal parts' if parts > 1 else ''}; make it a multiple of "
            f"{shards * parts}, or set mesh.data{' or optim.accumulate' if parts > 1 else ''}."
        )


def require_attention(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Refuse a kernel in `model.attention` that is not for the mesh's devices, or whose heads these
    cannot share equally."""
    model, tensor = experiment.model, mesh.shape["tensor"]
    if model.attention == "xla" or experiment.learner not in ("decoder", "parti"):
        return
    # CPUs interpret splash attention, so that it can be tried without a TPU.
    known = {"cudnn": ("gpu",), "splash": ("tpu", "cpu")}[model.attention]
    platform = mesh.devices.flat[0].platform
    if platform not in known:
        raise UserError(
            f"model.attention={model.attention} is for a {known[0]}, but jax found {platform} "
            "alone; use model.attention=xla."
        )
    if model.groups % tensor:
        raise UserError(
            f"model.attention={model.attention} cannot share {model.groups} heads of keys and "
            f"values equally among mesh.tensor={tensor} devices; change that, or use "
            "model.attention=xla."
        )
