"""FID of drawn emblems by the shipped CLIP's image features: its own scale, not Inception's."""

import dataclasses

import numpy as np

from cm3jax.emblems import prompts
from cm3jax.emblems.probe_prompts import ProbeKind
from cm3jax.evaluate.fid import Frechet, Moments
from cm3jax.evaluate.protocol import Protocol, Score
from cm3jax.shapes import Float, UInt8
from experiments.claims.harness import Bench

REFERENCE = 2000
"""True images that the drawn ones are compared with."""


class Distance:
    """The distance to true images of a kind of prompts, of which none is asked."""

    def __init__(self, bench: Bench, kind: ProbeKind):
        asked = bench.seeds * bench.prompts
        every = prompts(kind, asked + REFERENCE, size=bench.size)
        self._say, self._encode = bench.say, bench.generator.encoder.encode_images
        truth = self._features(np.stack([prompt.image for prompt in every[asked:]]))
        self._frechet = Frechet(Moments.of(truth).gaussian)
        self._extractor = f"CLIP's unit picture vectors, weights {bench.weights['clip']}"

    def score(self, name: str, images: UInt8[np.ndarray, "B Y X 3"], protocol: Protocol) -> Score:
        """The distance of these images, times 1000; the interval is a bootstrap over images.
        The stamp is `protocol`'s with what is compared, and by which network."""
        protocol = dataclasses.replace(
            protocol,
            reader=f"1000 × Fréchet distance to {REFERENCE} true pictures of other prompts",
            extractor=self._extractor,
        )
        features = self._features(images)
        value = self._frechet(Moments.of(features).gaussian)
        low, high = self._frechet.interval(features, seed=0)
        score = Score(value, len(images), None, (low, high), protocol)
        self._say(f"{name}: {value:.2f} ({low:.2f}–{high:.2f})")
        return score

    def _features(self, images: UInt8[np.ndarray, "B Y X 3"]) -> Float[np.ndarray, "B D"]:
        # Distances of unit vectors are small numbers: a thousandth is 1.
        return self._encode(images).astype(np.float64) * np.sqrt(1000)
