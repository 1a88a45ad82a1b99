"""The vector quantiser: nearest codebook entry, and a codebook that follows its inputs.

By averages (`vqgan.codebook=ema`) the codebook is state, not parameters: no gradient reaches it. It
lives in the mutable collection "codebook"; apply the model with `mutable=["codebook"]` and a
`restart` random key to let it follow. By gradients (`gradient`) it is a parameter like others, and
`Quantised.following` is its loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cm3jax import partition
from cm3jax.config import VQGANConfig
from cm3jax.shapes import Array, Float, Int, Key

_GRACE = 3.0
"""Uses with which an entry restarts, in `restart_below`: it has log(3) / -log(ema_decay) batches to
be chosen before it restarts again. Many entries begin as copies of one another, so not longer."""


@struct.dataclass(eq=False)
class Quantised:
    """What the quantiser says about some vectors."""

    vectors: Float[Array, "*B C"]
    """The nearest entries; their gradient goes straight to the inputs."""
    codes: Int[Array, "*B"]
    """Their numbers."""
    commitment: Float[Array, ""]
    """Mean squared distance of the inputs to their entries; pulls only the encoder."""
    following: Float[Array, ""]
    """The same mean, whose gradient pulls only the entries; 0 where they follow by averages."""


class VectorQuantiser(nn.Module):
    """Nearest neighbour by squared L2 in float32; averages over the batch of all devices.

    An entry is the moving average of the inputs it was chosen for (van den Oord et al. 2017,
    appendix A.1). One that is hardly ever chosen restarts at an input of the batch, drawn in
    proportion to its squared distance to the entry it got, as k-means++ seeds its centres: a rare
    input without an entry of its own is found first. An empty codebook, as after `init`, is all
    restarts; hence the first batches initialise it.
    """

    config: VQGANConfig

    def setup(self):
        """The entries, and, where they follow by averages, that of uses per batch."""
        c = self.config
        if c.codebook == "gradient":
            near = nn.initializers.uniform(2.0 / c.codes)  # taming's: around 0, below 1 / codes
            shifted = partition.boxed_init(
                lambda *args: near(*args) - 1.0 / c.codes, "codes", "code_width"
            )
            self.table = self.param("entries", shifted, (c.codes, c.code_width))
            return
        entries = partition.boxed_init(nn.initializers.normal(1.0), "codes", "code_width")
        zeros = partition.boxed_init(jnp.zeros, "codes")
        self.entries = self.variable(
            "codebook", "entries", lambda: entries(self.make_rng("params"), (c.codes, c.code_width))
        )
        self.uses = self.variable("codebook", "uses", zeros, (c.codes,))

    @property
    def _entries(self) -> Float[Array, "M C"]:
        # What was read from a file may be of numpy still.
        by_gradient = self.config.codebook == "gradient"
        return jnp.asarray(self.table if by_gradient else self.entries.value)

    def __call__(self, inputs: Float[Array, "*B C"]) -> Quantised:
        """Quantise, and let the codebook follow if its collection is mutable."""
        inputs = inputs.astype(jnp.float32)
        codes = self.nearest(inputs)
        entries = self.lookup(codes)
        distances = jnp.square(inputs - jax.lax.stop_gradient(entries)).sum(-1)
        by_gradient = self.config.codebook == "gradient"
        mutable = self.is_mutable_collection("codebook") and not self.is_initializing()
        if mutable and not by_gradient:
            self._follow(*jax.lax.stop_gradient((inputs, codes, distances)))
        apart = jnp.square(jax.lax.stop_gradient(inputs) - entries).mean()
        return Quantised(
            vectors=inputs + jax.lax.stop_gradient(entries - inputs),
            codes=codes,
            commitment=distances.mean() / inputs.shape[-1],
            following=apart if by_gradient else jnp.zeros(()),
        )

    def nearest(self, inputs: Float[Array, "*B C"]) -> Int[Array, "*B"]:
        """The code of each vector, 0..codes-1, int32."""
        entries = self._entries
        products = jnp.matmul(inputs, entries.T, precision=jax.lax.Precision.HIGHEST)
        # |x|^2 is the same for every entry.
        return (jnp.square(entries).sum(-1) - 2 * products).argmin(-1).astype(jnp.int32)

    def lookup(self, codes: Int[Array, "*B"]) -> Float[Array, "*B C"]:
        """The entry of each code."""
        return self._entries[codes]

    def _follow(self, inputs, codes, distances) -> None:
        c = self.config
        inputs = inputs.reshape(-1, inputs.shape[-1])
        chosen = jax.nn.one_hot(codes.reshape(-1), c.codes)
        uses, entries = self.uses.value, self.entries.value
        # Moving averages of uses and of sums of inputs; the entry is their quotient.
        new_uses = c.ema_decay * uses + (1 - c.ema_decay) * chosen.sum(0)
        sums = c.ema_decay * uses[:, None] * entries + (1 - c.ema_decay) * chosen.T @ inputs
        dead = new_uses < c.restart_below
        averages = sums / jnp.where(dead, 1.0, new_uses)[:, None]
        restarts = draw_far_inputs(self.make_rng("restart"), inputs, distances.reshape(-1), c.codes)
        # The dead entries take the drawn inputs in order.
        turn = jnp.maximum(jnp.cumsum(dead) - 1, 0)
        self.entries.value = jnp.where(dead[:, None], restarts[turn], averages)
        self.uses.value = jnp.where(dead, _GRACE * c.restart_below, new_uses)


def draw_far_inputs(
    key: Key[Array, ""], inputs: Float[Array, "L C"], distances: Float[Array, " L"], count: int
) -> Float[Array, "M C"]:
    """`count` inputs, without repetition while there are enough, likelier the farther they are."""
    scores = jnp.log(distances + 1e-12) + jax.random.gumbel(key, distances.shape)
    order = jnp.argsort(-scores)
    return inputs[order[jnp.arange(count) % len(inputs)]]
