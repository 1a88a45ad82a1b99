"""Parameters as decoding reads them, and how many bytes that is."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def as_read(variables: dict, dtype: str) -> dict:
    """Parameters with each layer's apart, and matrices in the type that they are multiplied in.

    Layers that are cut out of a stack would be copied at every step, and matrices of another type
    cast; norms and tables that are looked up keep theirs.
    """

    def cast(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.astype(dtype) if name in ("kernel", "head") else leaf

    cast_ = jax.tree.map_with_path(cast, variables)
    params = dict(cast_["params"])
    leaves, tree = jax.tree.flatten(params.pop("layers"))
    for number, layer in enumerate(zip(*map(_unstacked, leaves), strict=True)):
        params[f"layer_{number}"] = jax.tree.unflatten(tree, layer)
    return {**cast_, "params": params}


def _unstacked(stack: Any) -> list[Any]:
    """The arrays of a stack, each on the devices that its part of the stack is on."""
    parts = jnp.unstack(jnp.asarray(stack))
    if isinstance(stack, jax.Array) and isinstance(stack.sharding, NamedSharding):
        sharding = NamedSharding(stack.sharding.mesh, PartitionSpec(*stack.sharding.spec[1:]))
        parts = [jax.device_put(part, sharding) for part in parts]
    return list(parts)


def bytes_per_step(variables: dict) -> int:
    """Bytes of parameters that a step reads.

    Of tables that are looked up in it reads next to nothing, of what prompts alone pass nothing.
    """
    params = variables["params"]
    spared = [{"position"}, {"text_position"}, {"encoder"}, {"encoder_norm"}]
    spared += [{"cross", "key"}, {"cross", "value"}, *([{"embedding"}] if "head" in params else [])]
    return sum(
        leaf.nbytes
        for path, leaf in jax.tree.leaves_with_path(params)
        if not any(names <= {key.key for key in path} for names in spared)
    )
