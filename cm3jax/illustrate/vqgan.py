"""The image tokenizer's illustration: pictures over their reconstructions."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from cm3jax.html import Html, png_uri, tag
from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.run_report import Illustration
from cm3jax.state import TrainState
from cm3jax.tokenizers.image import to_bytes, to_pixels


def illustrator(learner: VQGANLearner) -> Callable[[TrainState], Sequence[Illustration]]:
    """Encodes and decodes the split's first `train.samples` pictures, always the same."""

    @jax.jit
    def reconstruct(variables, pictures):
        return to_bytes(learner.model.apply(variables, to_pixels(pictures)).reconstruction)

    def illustrate(state: TrainState) -> Sequence[Illustration]:
        count = learner.experiment.train.samples
        pictures = learner.stream("validation").arrays["images"][:count]
        variables = {"params": state.params, **state.extra}
        remade = np.asarray(reconstruct(variables, pictures))
        cells = [
            tag("div", _image(picture, "a picture"), _image(again, "it again"), class_="cell")
            for picture, again in zip(pictures, remade, strict=True)
        ]
        why = "Above pictures of the validation split, below them what their codes decode to."
        body = tag("div", tag("p", why), tag("div", *cells, class_="cells"))
        grid = np.concatenate([np.concatenate(row, axis=1) for row in (pictures, remade)])
        return [Illustration("Reconstructions", body, {"reconstructions": grid})]

    return illustrate


def _image(picture: np.ndarray, alt: str) -> Html:
    return tag("img", src=png_uri(picture), alt=alt)
