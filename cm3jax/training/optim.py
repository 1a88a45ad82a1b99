"""AdamW (the papers' optimiser) or Muon, with a linear warm-up and a linear decay."""

import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cm3jax.config import ONE_STAGE, CurriculumConfig, OptimConfig
from cm3jax.shapes import Array, Float, Int


def learning_rate(
    config: OptimConfig, steps: int, stages: CurriculumConfig = ONE_STAGE
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """The learning rate of update number 1, 2, ... `steps`.

    It rises linearly to `peak_lr` at update `warmup_steps` and falls linearly to
    `peak_lr * end_lr_ratio` at the last one; each stage multiplies it by its own `stages.rate`.
    """

    def rate(step):
        rise = step / max(config.warmup_steps, 1)
        fallen = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        fall = 1.0 - (1.0 - config.end_lr_ratio) * jnp.clip(fallen, 0.0, 1.0)
        return config.peak_lr * jnp.minimum(rise, fall)

    if not stages.rate:
        return rate

    def staged(step):
        stage = jnp.searchsorted(jnp.asarray(stages.starts), step) - 1
        return rate(step) * jnp.asarray(stages.rate)[stage]

    return staged


def decays(boxed: Any) -> Any:
    """Which parameters weight decay shrinks: matrices, not vectors, norms or biases.

    `boxed` is the parameter tree with logical axis names. Stacking over layers makes a matrix of
    every vector, so the axis `layers` does not count; a bias of heads is not a matrix either.
    """

    def matrix(path, leaf) -> bool:
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        axes = nn.unbox(leaf).ndim - names.count("layers")
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return axes >= 2 and name not in ("scale", "bias")

    return jax.tree.map_with_path(matrix, boxed, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def matrices(boxed: Any) -> Any:
    """Which parameters Muon orthogonalises, and as which matrices; None for the others.

    These are the kernels named `kernel`: `embed` is one side of the matrix, the axes that are
    neither `embed` nor `layers` are the other, and each layer is a matrix of its own.
    """

    def sides(path, leaf):
        if jax.tree_util.keystr(path[-1:], simple=True) != "kernel":
            return None
        (embed,) = (i for i, name in enumerate(leaf.names) if name == "embed")
        others = tuple(i for i, n in enumerate(leaf.names) if n not in ("embed", "layers"))
        into, out = (embed, others) if embed < others[0] else (others, embed)
        return optax.contrib.MuonDimensionNumbers(reduction_axis=into, output_axis=out)

    return jax.tree.map_with_path(sides, boxed, is_leaf=_is_box)


def _unfrozen(sides: Any, params: Any) -> Any:
    """`sides` with optax's mask in place of what `freezing` keeps from the optimiser."""
    is_frozen = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda leaf, side: leaf if is_frozen(leaf) else side, params, sides, is_leaf=is_frozen
    )


def trained(pattern: str, rows: slice, boxed: Any) -> Any:
    """How many values of each parameter training changes: none where `pattern` (`optim.trained`)
    is not in its name, only `rows` where it is a table over the vocabulary."""

    def count(path, leaf) -> int:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if re.search(pattern, name) is None:
            return 0
        shape, axis = nn.unbox(leaf).shape, _vocab_axis(leaf)
        size = math.prod(shape)
        return size if axis is None else size // shape[axis] * len(range(shape[axis])[rows])

    return jax.tree.map_with_path(count, boxed, is_leaf=_is_box)


def freezing(
    method: optax.GradientTransformation, which: Any, rows: slice, boxed: Any
) -> optax.GradientTransformation:
    """`method`, only for what is `trained` (`which`); parameters without any keep no moments."""
    mine, sizes = jax.tree.leaves(which), [leaf.size for leaf in jax.tree.leaves(boxed)]
    if mine == sizes:
        return method

    def cut(leaf, value):
        axis = _vocab_axis(leaf)
        if axis is None:
            return value
        ids = jax.lax.broadcasted_iota(jnp.int32, value.shape, axis)
        start, stop, _ = rows.indices(value.shape[axis])
        return jnp.where((start <= ids) & (ids < stop), value, 0)

    # Before: no norm and no moment counts the others. After: nor does weight decay shrink them.
    cutting = optax.stateless(lambda updates, _: jax.tree.map(cut, boxed, updates, is_leaf=_is_box))
    owner = jax.tree.map(lambda count: "trained" if count else "frozen", which)
    method = optax.partition({"trained": method, "frozen": optax.set_to_zero()}, owner)
    return optax.chain(cutting, method, cutting)


def _vocab_axis(leaf: Any) -> int | None:
    """The axis of a parameter that counts ids."""
    names = leaf.names if _is_box(leaf) else ()
    return names.index("vocab") if "vocab" in names else None


def optimizer(
    config: OptimConfig, steps: int, boxed: Any, stages: CurriculumConfig = ONE_STAGE
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon; `boxed` are the parameters with axis names.

    A `discriminator` among them has a loss of its own and is clipped by itself.
    """
    schedule = learning_rate(config, steps, stages)
    rate = lambda count: schedule(count + 1)  # noqa: E731 - optax counts finished updates
    if config.method == "adamw":
        method = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays(boxed),
        )
    else:
        method = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            eps=config.eps,
            muon_weight_dimension_numbers=lambda params: _unfrozen(matrices(boxed), params),
            consistent_rms=0.2,
        )
    clip = optax.clip_by_global_norm(config.clip_norm)
    if "discriminator" in boxed:
        owner = {name: "its" if name == "discriminator" else "ours" for name in boxed}
        clip = optax.partition({"its": clip, "ours": clip}, owner)
    return optax.chain(clip, method)
