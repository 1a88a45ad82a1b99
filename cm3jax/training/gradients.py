"""The gradient of a learner's loss over a global batch: at once, or in parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cm3jax.shapes import Array, Key
from cm3jax.training.loss import LossOutput
from cm3jax.training.state import TrainState

Loss = Callable[[Any, Any, Any, Key[Array, ""], Any], LossOutput]
"""`loss(params, extra, batch, key, step)`."""


def gradients(
    loss: Loss, state: TrainState, batch: Any, key: Key[Array, ""]
) -> tuple[Any, LossOutput]:
    """Gradients like `state.params`, and what the loss returned."""

    def scalar(params):
        output = loss(params, state.extra, batch, key, state.step)
        return output.loss, output

    return jax.grad(scalar, has_aux=True)(state.params)


def accumulated(
    parts: int,
    shardings: Any,
    loss: Loss,
    state: TrainState,
    batch: Any,
    key: Key[Array, ""],
) -> tuple[Any, LossOutput]:
    """As `gradients`, part by part of the batch: only one part's activations are in memory.

    `parts` divides the rows of each device; `shardings` are those of the parameters. The loss must
    be a mean over the weight of `metrics["loss"]` (`LossOutput`). Parts count by that weight, since
    a mean of means would favour the targets of parts with few. A part takes every `parts`-th row,
    so that no row leaves its device. Draws from the key, such as dropout, depend on `parts`.
    """
    rows = jax.tree.leaves(batch)[0].shape[0] // parts
    split = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(rows, parts, *leaf.shape[1:]), 1, 0), batch
    )

    def add(sums: tuple[Any, Any, Any], part: tuple[Any, Any]):
        total, metrics, extra = sums
        index, rows = part
        here = dataclasses.replace(state, extra=extra)
        more, output = gradients(loss, here, rows, jax.random.fold_in(key, index))
        weight = jnp.maximum(output.metrics["loss"][1], 1.0)
        total = jax.tree.map(lambda left, right: left + weight * right, total, more)
        return (total, jax.tree.map(jnp.add, metrics, output.metrics), output.extra), None

    first = jax.tree.map(lambda leaf: leaf[0], split)
    shapes = jax.eval_shape(lambda *args: gradients(loss, *args)[1].metrics, state, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (state.params, shapes))
    start = (jax.lax.with_sharding_constraint(zeros[0], shardings), zeros[1], state.extra)
    (total, metrics, extra), _ = jax.lax.scan(add, start, (jnp.arange(parts), split))
    value, weight = metrics["loss"]
    weight = jnp.maximum(weight, 1.0)
    return jax.tree.map(lambda leaf: leaf / weight, total), LossOutput(
        value / weight, metrics, extra
    )
