"""Choosing a token: temperature, top-k, nucleus, and noise that belongs to a sample alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.sequence import prng
from cm3jax.shapes import Array, Bool, Float, Int, UInt32


@dataclasses.dataclass(frozen=True, eq=False)
class SampleKeys:
    """What makes each sample's choices its own."""

    keys: UInt32[np.ndarray, "B 2"]
    """Seeds of its noise."""
    temperatures: Float[np.ndarray, " B"]
    """Its temperature, float32."""


def dice(
    seed: int,
    prompts: Int[np.ndarray, " B"],
    samples: Int[np.ndarray, " B"],
    temperatures: tuple[float, float],
) -> SampleKeys:
    """Functions of (seed, prompt id, sample id), wherever in a batch a sample stands.

    Temperatures are drawn uniformly between the two given ones; equal ones fix it.
    """
    words = prng.bits(np, seed, prompts, samples, prng.PrngStream.SAMPLES, 3)
    low, high = temperatures
    drawn = low + (high - low) * (words[:, 2] / 2**32)
    return SampleKeys(words[:, :2], drawn.astype(np.float32))


def noise(
    keys: UInt32[Array, "B 2"], emitted: Int[Array, " B"], vocab_size: int
) -> Float[Array, "B V"]:
    """Gumbel noise of the next token, from the sample's key and the tokens it has emitted."""
    stream = prng.PrngStream.TOKENS
    return gumbel(prng.bits(jnp, keys[:, 0], keys[:, 1], emitted, stream, vocab_size))


def gumbel(words: UInt32[Array, "*B"]) -> Float[Array, "*B"]:
    """Random words as standard Gumbel noise, finite for every word."""
    # 23 bits and a half: neither 0 nor, rounded to float32, 1.
    uniform = ((words >> jnp.uint32(9)).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(uniform))


def kth_largest(logits: Float[Array, "B V"], k: Int[Array, ""]) -> Float[Array, "B 1"]:
    """The k-th largest of each row, k from 1; the smallest where k is beyond the row."""
    ordered = -jnp.sort(-logits, axis=-1)
    place = jnp.full((len(logits), 1), jnp.minimum(k, logits.shape[1]) - 1)
    return jnp.take_along_axis(ordered, place, axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=["k"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class TopK:
    """Keep the `k` likeliest ids, and those as likely as the last of them."""

    k: Int[Array, ""]

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits with -inf outside."""
        return jnp.where(logits >= kth_largest(logits, self.k), logits, -jnp.inf)


@partial(jax.tree_util.register_dataclass, data_fields=["p"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class TopP:
    """Keep the nucleus: the smallest set of likeliest ids with probability `p`.

    Ids as likely as the last member are members too.
    """

    p: Float[Array, ""]

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits with -inf outside."""
        ordered = -jnp.sort(-logits, axis=-1)
        mass = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(mass, axis=-1) - mass
        # The likeliest is a member even where float32 makes 0 of a tiny p.
        last = jnp.maximum(jnp.sum(before < self.p, axis=-1, keepdims=True) - 1, 0)
        least = jnp.take_along_axis(ordered, last, axis=-1)
        return jnp.where(logits >= least, logits, -jnp.inf)


def sample_token(
    scores: Float[Array, "B V"], noise: Float[Array, "B V"] | None, greedy: Bool[Array, " B"]
) -> Int[Array, " B"]:
    """A token of each row, drawn from the softmax of its scores; greedy rows take the largest.

    The largest of scores plus Gumbel noise is a sample of their softmax. Without noise all rows are
    greedy.
    """
    if noise is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    noisy = jnp.where(greedy[:, None], scores, scores + noise)
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)
