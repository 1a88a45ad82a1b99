"""Guidance by streams that see other prompts and share each sampled token (section 3.1).

Stream 0 has seen everything; each next one knows less.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cm3jax.decode.sampling import kth_largest
from cm3jax.shapes import Array, Float, Int


def guide(logits: Float[Array, "W B V"], scales: Float[Array, "U B"]) -> Float[Array, "B V"]:
    """Classifier-free guidance with any number of streams W, U = W - 1.

    Scale i pushes away from stream i + 1 towards stream i. With one scale the form
    c + (s - 1)(c - u) equals the paper's u + s(c - u) and is exactly c at scale 1. With two, (text,
    picture), it is editing's u + s_picture(p - u) + s_text(c - p).
    """
    out = logits[0]
    for scale, more, less in zip(scales, logits, logits[1:], strict=False):
        out = out + (scale[:, None] - 1) * (more - less)
    return out


@partial(
    jax.tree_util.register_dataclass, data_fields=["k", "alpha", "temperature"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class ContrastiveK:
    """CD-K: log p(y | prompt) - log p(y | nothing) of the ids that the prompt makes likely.

    Those are V = {y : p(y) >= alpha * the k-th largest p}; k = 1 is contrastive decoding. With an
    alpha of at most 1, V has k members or more.
    """

    k: Int[Array, ""]
    alpha: Float[Array, ""]
    temperature: Float[Array, ""]
    """Divides the unconditional logits."""

    def __call__(
        self, conditional: Float[Array, "B V"], unconditional: Float[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Scores, -inf outside of V; to be sampled from by their softmax.

        `conditional` is divided by its temperature already and -inf where nothing is permitted.
        """
        likely = jax.nn.log_softmax(conditional)
        least = jnp.log(self.alpha) + kth_largest(likely, self.k)
        scores = likely - jax.nn.log_softmax(unconditional / self.temperature)
        return jnp.where(jnp.isfinite(likely) & (likely >= least), scores, -jnp.inf)
