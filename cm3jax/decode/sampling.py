"""Choosing a token: temperature, nucleus, and noise that belongs to a sample alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax import draws
from cm3jax.shapes import Array, Float, Int, UInt32


@dataclasses.dataclass(frozen=True)
class Dice:
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
) -> Dice:
    """Functions of (seed, prompt id, sample id), wherever in a batch a sample stands.

    Temperatures are drawn uniformly between the two given ones; equal ones fix it.
    """
    words = draws.bits(np, seed, prompts, samples, draws.Stream.SAMPLES, 3)
    low, high = temperatures
    drawn = low + (high - low) * (words[:, 2] / 2**32)
    return Dice(words[:, :2], drawn.astype(np.float32))


def noise(
    keys: UInt32[Array, "B 2"], emitted: Int[Array, " B"], vocab_size: int
) -> Float[Array, "B V"]:
    """Gumbel noise of the next token, from the sample's key and the tokens it has emitted."""
    stream = draws.Stream.TOKENS
    return gumbel(draws.bits(jnp, keys[:, 0], keys[:, 1], emitted, stream, vocab_size))


def gumbel(words: UInt32[Array, "*B"]) -> Float[Array, "*B"]:
    """Random words as standard Gumbel noise, finite for every word."""
    # 23 bits and a half: neither 0 nor, rounded to float32, 1.
    uniform = ((words >> jnp.uint32(9)).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(uniform))


def nucleus(logits: Float[Array, "B V"], top_p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Logits with -inf outside the smallest set of likeliest ids with probability `top_p`.

    Ids as likely as the last member are members too.
    """
    ordered = -jnp.sort(-logits, axis=-1)
    mass = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    return jnp.where(logits >= jnp.take_along_axis(ordered, last, axis=-1), logits, -jnp.inf)


def choose(
    logits: Float[Array, "B V"],
    noise: Float[Array, "B V"],
    temperature: Float[Array, " B"],
    top_p: Float[Array, ""] | None,
) -> Int[Array, " B"]:
    """A token of each row; temperature 0 takes the likeliest, `top_p` None every id's chance.

    The largest of logits plus Gumbel noise is a sample of their softmax. The nucleus is taken
    after the temperature.
    """
    greedy = temperature[:, None] == 0
    scaled = logits / jnp.where(greedy, 1, temperature[:, None])
    if top_p is not None:
        scaled = nucleus(scaled, top_p)
    return jnp.argmax(jnp.where(greedy, logits, scaled + noise), axis=-1).astype(jnp.int32)
