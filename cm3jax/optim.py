"""AdamW with a linear warm-up and a linear decay (the papers' optimiser; FACTS in the README)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cm3jax.config import OptimConfig
from cm3jax.shapes import Array, Float, Int


def learning_rate(
    config: OptimConfig, steps: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """The learning rate of update number 1, 2, ... `steps`.

    It rises linearly to `peak_lr` at update `warmup_steps` and falls linearly to
    `peak_lr * end_lr_ratio` at the last one.
    """

    def rate(step):
        rise = step / max(config.warmup_steps, 1)
        fallen = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        fall = 1.0 - (1.0 - config.end_lr_ratio) * jnp.clip(fallen, 0.0, 1.0)
        return config.peak_lr * jnp.minimum(rise, fall)

    return rate


def decays(boxed: Any) -> Any:
    """Which parameters weight decay shrinks: matrices, not vectors, norms or biases.

    `boxed` is the parameter tree with logical axis names. Stacking over layers makes a matrix of
    every vector, so the axis `layers` does not count; a bias of heads is no matrix either.
    """

    def matrix(path, leaf) -> bool:
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        axes = nn.unbox(leaf).ndim - names.count("layers")
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return axes >= 2 and name != "bias"

    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map_with_path(matrix, boxed, is_leaf=is_box)


def optimizer(config: OptimConfig, steps: int, boxed: Any) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; `boxed` are the parameters with axis names."""
    rate = learning_rate(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            lambda count: rate(count + 1),  # optax counts finished updates
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays(boxed),
        ),
    )
