"""The image tokenizer's illustration: images over their reconstructions, and figures by kind."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.report.html import Html, png_uri, table, tag
from cm3jax.report.run_page import Illustration
from cm3jax.shapes import Float, Int, UInt8
from cm3jax.tokenizers import lpips
from cm3jax.tokenizers.fidelity import psnr, ssim
from cm3jax.tokenizers.image_tokenizer import to_bytes, to_pixels
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.training.state import TrainState


def vqgan_illustrator(learner: VQGANLearner) -> Callable[[TrainState], Sequence[Illustration]]:
    """Encodes and decodes the first images of validation, or of training where nothing is held
    back: always the same.

    `train.samples` of them are shown; as many as a validation reads are measured.
    """
    experiment = learner.experiment
    batch, samples = experiment.data.batch, experiment.train.samples
    measured = max(samples, batch * experiment.train.validation_batches)

    @jax.jit
    def reconstruct(variables, images, weights):
        output = nn.apply(VQGAN.__call__, learner.model)(variables, to_pixels(images))
        remade = to_bytes(output.reconstruction)
        figures = {"psnr": psnr(images, remade), "ssim": ssim(images, remade)}
        if weights is not None:
            pair = output.reconstruction, to_pixels(images)
            figures[learner.perception] = lpips.lpips_distances(weights, *pair)
        return remade, output.codes, figures

    def illustrate(state: TrainState) -> Sequence[Illustration]:
        pictures = learner.held_back or learner.pictures("train")
        images, labels = pictures.images[:measured], pictures.labels[:measured]
        variables = {"params": state.averaged, **state.extra}
        remade, codes, figures = _batched(
            lambda part: reconstruct(variables, part, learner.lpips), images, batch
        )
        shown = [images[:samples], remade[:samples]]
        cells = [
            tag("div", _image(picture, "an image"), _image(again, "it again"), class_="cell")
            for picture, again in zip(*shown, strict=True)
        ]
        split = "validation" if learner.held_back else "training"
        why = f"Above images of the {split} split, below them what their codes decode to."
        rows = by_label(labels, figures, codes, experiment.vqgan.codes)
        grid = np.concatenate([np.concatenate(row, axis=1) for row in shown])
        body = tag("div", tag("p", why), tag("div", *cells, class_="cells"), table(rows))
        return [Illustration("Reconstructions", body, {"reconstructions": grid})]

    return illustrate


def by_label(
    labels: Sequence[str],
    figures: dict[str, Float[np.ndarray, " B"]],
    codes: Int[np.ndarray, "B T"],
    count: int,
) -> list[dict[str, str]]:
    """A row for all images and one for each label: means of `figures`, use of `count` codes."""
    every = np.asarray(labels)
    rows = []
    for name in ("all", *sorted(set(labels))):
        mine = np.ones(len(every), bool) if name == "all" else every == name
        uses = np.unique(codes[mine], return_counts=True)[1]
        shares = uses / uses.sum()
        usage = {
            "code_usage": len(uses) / count,
            "code_perplexity": np.exp(-np.sum(shares * np.log(shares))),
        }
        rows.append(
            {"images of": name, "number": str(int(mine.sum()))}
            | {figure: f"{values[mine].mean():.4g}" for figure, values in figures.items()}
            | {what: f"{value:.4g}" for what, value in usage.items()}
        )
    return rows


def _batched(function: Callable, images: UInt8[np.ndarray, "B Y X 3"], size: int) -> Any:
    """`function` of all images, of as many at once as in training; the last are filled up."""
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        fill = ((0, size - len(part)), (0, 0), (0, 0), (0, 0))
        outputs = function(np.pad(part, fill))
        count = len(part)
        parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], outputs))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _image(picture: np.ndarray, alt: str) -> Html:
    return tag("img", src=png_uri(picture), alt=alt)
