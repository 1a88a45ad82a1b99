"""How the next token is chosen, from the logits of every stream to an id.

    logits of the streams → `guide` → / temperature → filters (`TopK`, `TopP`) ─┐
                          → `ContrastiveK`, for the samples that it draws ──────┴→ `sample_token`

Stream 0 has seen everything; each next one knows less. A new method is a field of `DecodeConfig`, a
class like `TopP`, and its line in `Method.of`. The noise is each sample's own (`SampleKeys`), so
that the rest of the batch changes nothing. Paper: section 3.1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.sequence import prng
from cm3jax.shapes import AnyArray, Array, Bool, Float, Int, UInt32

Filter = Callable[[Float[Array, "B V"]], Float[Array, "B V"]]
"""Scores with -inf for what is not to be sampled; a pytree, so that its numbers compile nothing."""


def guide(logits: Float[Array, "W B V"], scales: Float[Array, "U B"]) -> Float[Array, "B V"]:
    """Classifier-free guidance with any number of streams W, U = W - 1.

    Scale i pushes away from stream i + 1 towards stream i. With one scale the form
    c + (s - 1)(c - u) equals the paper's u + s(c - u) and is exactly c at scale 1. With two, (text,
    image), it is editing's u + s_picture(p - u) + s_text(c - p).
    """
    out = logits[0]
    for scale, more, less in zip(scales, logits, logits[1:], strict=False):
        out = out + (scale[:, None] - 1) * (more - less)
    return out


def kth_largest(logits: Float[Array, "B V"], k: Int[Array, "*rows"]) -> Float[Array, "B 1"]:
    """The k-th largest of each row, k from 1, for all or for each [B 1]; the smallest where k is
    beyond the row."""
    ordered = -jnp.sort(-logits, axis=-1)
    place = jnp.full((len(logits), 1), jnp.minimum(k, logits.shape[1]) - 1)
    return jnp.take_along_axis(ordered, place, axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=["k"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class TopK:
    """Keep the `k` likeliest ids, and those as likely as the last of them."""

    k: Int[Array, "*rows"]

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits with -inf outside."""
        return jnp.where(logits >= kth_largest(logits, self.k), logits, -jnp.inf)


@partial(jax.tree_util.register_dataclass, data_fields=["p"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class TopP:
    """Keep the nucleus: the smallest set of likeliest ids with probability `p`.

    Ids as likely as the last member are members too.
    """

    p: Float[Array, "*rows"]

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits with -inf outside."""
        ordered = -jnp.sort(-logits, axis=-1)
        mass = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(mass, axis=-1) - mass
        # The likeliest is a member even where float32 makes 0 of a tiny p.
        last = jnp.maximum(jnp.sum(before < self.p, axis=-1, keepdims=True) - 1, 0)
        least = jnp.take_along_axis(ordered, last, axis=-1)
        return jnp.where(logits >= least, logits, -jnp.inf)


@partial(
    jax.tree_util.register_dataclass, data_fields=["k", "alpha", "temperature"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class ContrastiveK:
    """CD-K: log p(y | prompt) - log p(y | nothing) of the ids that the prompt makes likely.

    Those are V = {y : p(y) >= alpha * the k-th largest p}; k = 1 is contrastive decoding. With an
    alpha of at most 1, V has k members or more.
    """

    k: Int[Array, "*rows"]
    alpha: Float[Array, "*rows"]
    temperature: Float[Array, "*rows"]
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


@partial(jax.tree_util.register_dataclass, data_fields=["filters", "contrastive"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Method:
    """How all samples of a call are drawn: the pieces compose freely.

    Temperature, then top-k, then top-p, on logits that guidance has moved; or CD-K; or every second
    sample by CD-K, whose errors differ from the others' (figure 4).
    """

    filters: tuple[Filter, ...]
    """Applied in this order after guidance and temperature."""
    contrastive: ContrastiveK | None
    """For the samples that are `contrasted`."""

    @classmethod
    def of(cls, config: DecodeConfig) -> "Method":
        """The method that a config describes."""
        filters: list[Filter] = []
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

    @classmethod
    def of_rows(cls, configs: Sequence[DecodeConfig]) -> "Method":
        """The method of rows with a config each, which use the same filters with any numbers."""
        different = {id(config): config for config in configs}
        methods = {name: cls.of(config) for name, config in different.items()}
        rows = [methods[id(config)] for config in configs]
        return jax.tree.map(lambda *numbers: jnp.asarray(np.stack(numbers)[:, None]), *rows)

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


def sample_token(
    scores: Float[Array, "B V"], noise: Float[Array, "B V"] | None, greedy: Bool[Array, " B"]
) -> Int[Array, " B"]:
    """A token of each row, drawn from the softmax of its scores; greedy rows take the largest.

    The largest of scores plus Gumbel noise is a sample of their softmax. Without noise all rows are
    greedy.
    """
    if noise is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    # Computed once, so that what is the largest is so in both reductions below, bit for bit.
    noisy = jax.lax.optimization_barrier(jnp.where(greedy[:, None], scores, scores + noise))
    # Not by argmax, into which XLA's CPU backend fuses the noise, one word after another. What two
    # reductions read is computed by itself, in vectors: a quarter less time for a pass over 8 ids.
    largest = noisy == noisy.max(axis=-1, keepdims=True)
    places = jnp.arange(noisy.shape[-1], dtype=jnp.int32)
    return jnp.where(largest, places, noisy.shape[-1] - 1).min(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class SampleKeys:
    """What makes each sample's choices its own."""

    keys: UInt32[np.ndarray, "B 2"]
    """Seeds of its noise."""
    temperatures: Float[np.ndarray, " B"]
    """Its temperature, float32."""


def sample_keys(
    seeds: int | UInt32[np.ndarray, " B"],
    prompts: Int[np.ndarray, " B"],
    samples: Int[np.ndarray, " B"],
    temperatures: tuple[float, float] | Float[np.ndarray, "2 B"],
) -> SampleKeys:
    """Functions of (seed, prompt id, sample id), wherever in a batch a sample is.

    Temperatures are drawn uniformly between the two given ones, of all samples or of each; equal
    ones fix it.
    """
    words = np.asarray(prng.bits(np, seeds, prompts, samples, prng.PrngStream.SAMPLES, 3))
    low, high = temperatures
    drawn = low + (high - low) * (words[:, 2] / 2**32)
    return SampleKeys(words[:, :2], drawn.astype(np.float32))


def noise(
    keys: UInt32[AnyArray, "B 2"], emitted: Int[Array, " B"], vocab_size: int
) -> Float[Array, "B V"]:
    """Gumbel noise of the next token, from the sample's key and the tokens it has emitted."""
    stream = prng.PrngStream.TOKENS
    words = prng.bits(jnp, keys[:, 0], keys[:, 1], emitted, stream, vocab_size)
    return gumbel(jnp.asarray(words))


def gumbel(words: UInt32[Array, "*B"]) -> Float[Array, "*B"]:
    """Random words as standard Gumbel noise, finite for every word."""
    # 23 bits and a half: neither 0 nor, rounded to float32, 1.
    uniform = ((words >> jnp.uint32(9)).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(uniform))
