"""Exponential moving averages of the parameters, for everything but training itself."""

from typing import Any

import jax
import jax.numpy as jnp

from cm3jax.shapes import Array, Int


def begin(params: Any, trained: Any) -> Any:
    """The averages before the first update: the parameters, and None for those that are frozen.

    `trained` says how many values of each parameter training changes. The arrays are copies: a
    train state's are donated, each once.
    """
    return jax.tree.map(lambda leaf, mine: jnp.copy(leaf) if mine else None, params, trained)


def update_averages(averages: Any, params: Any, decay: float, step: Int[Array, ""]) -> Any:
    """The averages after update number `step`, which made `params`.

    Early updates count for more, with decay (1 + step) / (10 + step) while that is less, so that
    the values at the start are soon forgotten.
    """
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def mix(old, new):
        return None if old is None else old + share * (new - old)

    return jax.tree.map(mix, averages, params, is_leaf=is_none)


def over(averages: Any, params: Any) -> Any:
    """`params`, each replaced by its average where there is one."""
    if averages is None:
        return params
    return jax.tree.map(
        lambda mean, leaf: leaf if mean is None else mean, averages, params, is_leaf=is_none
    )


def is_none(node: Any) -> bool:
    """Whether a node of a tree is None, which jax counts as no leaf unless told so."""
    return node is None
