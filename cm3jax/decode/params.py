"""Parameters as decoding reads them, and how many bytes that is."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cm3jax.config import WeightType
from cm3jax.model.quantised import quantise_matrix, stored_bytes
from cm3jax.shapes import Array


def as_read(variables: dict, dtype: str, weights: WeightType = "") -> dict:
    """Parameters with each layer's apart, and matrices in the type that they are multiplied in.

    Otherwise every step would copy each layer out of its stack and cast the matrices. Norms and
    tables that are looked up keep their type. A TPU gets matrices as `as_multiplied` says. With
    `weights` the layers' matrices are quantised (`model.quantised`); the head is not.
    """

    def cast(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "kernel" and weights:
            return quantise_matrix(path, leaf, weights, dtype)
        return leaf.astype(dtype) if name in ("kernel", "head") else leaf

    variables = jax.tree.map_with_path(cast, variables)
    # A generator may be made before its parameters are known: there are none to take apart then.
    params = dict(variables.get("params", {}))
    leaves, tree = jax.tree.flatten(params.pop("layers", {}))
    for number, layer in enumerate(zip(*map(_unstacked, leaves), strict=True)):
        params[f"layer_{number}"] = jax.tree.unflatten(tree, layer)
    return {**variables, "params": jax.tree.map_with_path(_placed, params)}


def as_multiplied(path: tuple, leaf: Any) -> Format | None:
    """The order in memory that a TPU wants for products of few rows; None: as it is.

    The kernels of queries, keys and values, [D H A], are read with D running fastest. Left as they
    are, each chunk of steps copies them first (compiled for v6e: three copies a layer).
    `path` is the parameter's in the tree; `leaf` is an array, or a shape with its sharding.
    """
    names = {getattr(key, "key", "") for key in path}
    if leaf.ndim != 3 or "kernel" not in names or not names & {"query", "key", "value"}:
        return None
    if any(device.platform != "tpu" for device in leaf.sharding.device_set):
        return None
    return Format(Layout((1, 2, 0)), leaf.sharding)


def _placed(path: tuple, leaf: Any) -> Any:
    there = as_multiplied(path, leaf) if isinstance(leaf, jax.Array) else None
    return leaf if there is None else jax.device_put(leaf, there)


def _unstacked(stack: Any) -> Sequence[Array]:
    """The arrays of a stack, each on the devices of its part of the stack."""
    sharding = stack.sharding if isinstance(stack, jax.Array) else None
    if not isinstance(sharding, NamedSharding):
        return jnp.unstack(jnp.asarray(stack))
    return _unstacked_onto(stack, NamedSharding(sharding.mesh, P(*sharding.spec[1:])))


@partial(jax.jit, static_argnames="sharding")
def _unstacked_onto(stack, sharding: NamedSharding):
    return [jax.lax.with_sharding_constraint(part, sharding) for part in jnp.unstack(stack)]


def bytes_per_step(variables: dict) -> int:
    """Bytes of parameters that a step reads."""
    return sum(map(stored_bytes, read_by_steps(variables)))


def read_by_steps(variables: dict) -> list[Any]:
    """The parameters, or their shapes, that a step reads.

    Tables that are looked up hardly count, and parts that only prompts pass do not count.
    """
    params = variables["params"]
    spared = [{"position"}, {"text_position"}, {"encoder"}, {"encoder_norm"}]
    spared += [{"cross", "key"}, {"cross", "value"}, *([{"embedding"}] if "head" in params else [])]
    return [
        leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if not any(names <= {getattr(key, "key", "") for key in path} for names in spared)
    ]
