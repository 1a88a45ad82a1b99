"""Which of several samples is best: by CLIP, or by the model's own perplexity (section 3.1)."""

from collections.abc import Sequence

import numpy as np

from cm3jax.generation.answers import Generated
from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.shapes import Float, Int, UInt8


def clip_scores(
    encoder: ClipEncoder, text: str, images: UInt8[np.ndarray, "B Y X 3"]
) -> Float[np.ndarray, " B"]:
    """Inner products of the unit vectors of a text and of images: higher is better."""
    return encoder.encode_images(images) @ encoder.encode_texts([text])[0]


def scores_by_clip(
    group: Sequence[Generated], encoder: ClipEncoder, text: str
) -> Float[np.ndarray, " B"]:
    """The cosine of each sample's image and a text, -inf without an image."""
    scores = np.full(len(group), -np.inf)
    shown = enumerate(sample.image for sample in group)
    images = {place: image for place, image in shown if image is not None}
    if images:
        scores[list(images)] = clip_scores(encoder, text, np.stack(list(images.values())))
    return scores


def scores_by_perplexity(group: Sequence[Generated]) -> Float[np.ndarray, " B"]:
    """The perplexity of each sample's ids times -1: higher is better."""
    return -np.asarray([sample.perplexity for sample in group])


def best_first(scores: Float[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Places of scores from the highest on; equal ones keep their order."""
    return np.argsort(-scores, kind="stable")
