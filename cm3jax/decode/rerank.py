"""Which of several samples is best: by CLIP, or by the model's own perplexity (section 3.1)."""

from collections.abc import Sequence

import numpy as np

from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.shapes import Float, Int, UInt8


def clip_scores(
    encoder: ClipEncoder, text: str, images: UInt8[np.ndarray, "B Y X 3"]
) -> Float[np.ndarray, " B"]:
    """Inner products of the unit vectors of a text and of pictures: higher is better."""
    return encoder.encode_images(images) @ encoder.encode_texts([text])[0]


def perplexities(logprobs: Sequence[float], lengths: Sequence[int]) -> Float[np.ndarray, " B"]:
    """Perplexities of samples, from log-probabilities in nats and counts of sampled ids."""
    return np.exp(-np.asarray(logprobs, float) / np.maximum(1, np.asarray(lengths)))


def best_first(scores: Float[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Places of scores from the highest on; equal ones keep their order."""
    return np.argsort(-scores, kind="stable")
