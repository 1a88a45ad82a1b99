"""How samples are drawn, put together from a config: the pieces compose freely.

Temperature, then top-k, then top-p, on logits that guidance has moved; or CD-K; or every second
sample by CD-K, whose errors differ from the others' (section 3.1, figure 4).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode.guidance import ContrastiveK, guide
from cm3jax.decode.sampling import TopK, TopP
from cm3jax.shapes import Array, Bool, Float, Int


@partial(jax.tree_util.register_dataclass, data_fields=["filters", "contrastive"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Method:
    """What all samples of a call share."""

    filters: tuple[TopK | TopP, ...]
    """Applied in this order after guidance and temperature."""
    contrastive: ContrastiveK | None
    """For the samples that are `contrasted`."""

    @classmethod
    def of(cls, config: DecodeConfig) -> "Method":
        """The method that a config describes."""
        filters: list[TopK | TopP] = []
        if config.top_k:
            filters.append(TopK(jnp.int32(config.top_k)))
        if config.top_p < 1:
            filters.append(TopP(jnp.float32(config.top_p)))
        contrastive = None
        if config.contrast != "none":
            contrastive = ContrastiveK(
                jnp.int32(config.contrast_k),
                jnp.float32(config.contrast_alpha),
                jnp.float32(config.contrast_temperature),
            )
        return cls(tuple(filters), contrastive)

    def scores(
        self,
        logits: Float[Array, "W B V"],
        allowed: Bool[Array, "B V"],
        scales: Float[Array, "U B"],
        temperatures: Float[Array, " B"],
        contrasted: Bool[Array, " B"],
    ) -> Float[Array, "B V"]:
        """What to sample from by softmax, -inf for what is not allowed or filtered out.

        Temperature 0 counts as 1: such rows take the largest score.
        """
        divisor = jnp.where(temperatures == 0, 1, temperatures)[:, None]
        guided = jnp.where(allowed, guide(logits, scales), -jnp.inf) / divisor
        for keep in self.filters:
            guided = keep(guided)
        if self.contrastive is None or len(logits) == 1:
            return guided
        conditional = jnp.where(allowed, logits[0], -jnp.inf) / divisor
        scores = self.contrastive(conditional, logits[-1])
        return jnp.where(contrasted[:, None], scores, guided)


def contrasted(config: DecodeConfig, samples: Int[np.ndarray, " B"]) -> Bool[np.ndarray, " B"]:
    """Which samples CD-K draws: all, none, or those of odd number."""
    if config.contrast == "half":
        return samples % 2 == 1
    return np.full(samples.shape, config.contrast == "all")
