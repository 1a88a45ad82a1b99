"""What a step of decoding reads of a model's parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.decode.params import as_multiplied, bytes_per_step, read_by_steps

ONE = np.zeros((2, 3), np.float32)


def test_steps_read_no_tables_that_are_looked_up_in():
    cross = {"query": {"kernel": ONE}, "key": {"kernel": ONE}, "value": {"kernel": ONE}}
    layer = {"query": {"kernel": ONE}, "key": {"kernel": ONE}, "cross": cross}
    own = {"embedding": ONE, "head": ONE, "position": ONE, "layer_0": layer, "encoder": layer}
    assert len(read_by_steps({"params": own})) == 4  # the head, two of the layer, one of the cross
    assert bytes_per_step({"params": own}) == 4 * ONE.nbytes
    # A table that gives the logits, too, is read whole.
    assert bytes_per_step({"params": {"embedding": ONE, "position": ONE}}) == ONE.nbytes


def test_kernels_stay_as_they_lie_on_cpus():
    kernel = jnp.zeros((4, 2, 3))
    path = tuple(map(jax.tree_util.DictKey, ("layer_0", "attention", "query", "kernel")))
    assert as_multiplied(path, kernel) is None
