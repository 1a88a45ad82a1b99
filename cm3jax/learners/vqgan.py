"""Training the image tokenizer: reconstruction and commitment.

Encoder and decoder learn from the squared error of the reconstruction, the encoder also from the
commitment loss; the codebook follows by moving averages (`cm3jax.tokenizers.quantiser`). A
tokenizer for photographs also needs the perceptual (LPIPS) and adversarial losses of VQGAN (Esser
et al. 2021); they are not here yet, and the flat colours of the miniature need neither.

No absolute error: its gradient does not shrink with the error, so that the noise of common patches,
long since right, drowns the rare ones that are not.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm3jax import checkpoint
from cm3jax.config import Experiment
from cm3jax.data.pipeline import RecordStream
from cm3jax.data.sources import open_source
from cm3jax.errors import UserError
from cm3jax.loss import LossOutput, Mean
from cm3jax.metrics import Work
from cm3jax.shapes import Array, Float, Int, Key, UInt8
from cm3jax.tokenizers.image import ImageTokenizer, to_pixels
from cm3jax.tokenizers.vqgan import VQGAN


class VQGANLearner:
    """A `VQGAN`, its loss and all pictures of the source, read into memory once.

    Raises `UserError` if the source's pictures do not have the size that `vqgan` says.
    """

    fingerprints: Mapping[str, str] = {}  # it builds on no other tokenizer

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.model = VQGAN(experiment.vqgan)
        if experiment.data.image_size != experiment.vqgan.image_size:
            raise UserError(
                f"data.image_size={experiment.data.image_size} and vqgan.image_size="
                f"{experiment.vqgan.image_size} differ; make them equal."
            )

    @functools.cached_property
    def work(self) -> Work:
        """Of one global batch: three times the forward pass, as XLA counts it."""
        config = self.experiment.vqgan
        variables = jax.eval_shape(self.init, jax.random.key(0))
        picture = jnp.zeros((1, config.image_size, config.image_size, 3))
        forward = jax.jit(self.model.apply).lower(variables, picture).cost_analysis()["flops"]
        batch = self.experiment.data.batch
        return Work(batch * config.grid**2, 3.0 * batch * forward)

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """Parameters and codebook, boxed with their logical axes."""
        size = self.experiment.vqgan.image_size
        return self.model.init(key, jnp.zeros((1, size, size, 3)))

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Mapping[str, UInt8[Array, "B Y X 3"]],
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """Mean squared error of pixels in [-1, 1] plus the weighted commitment loss."""
        pixels = to_pixels(batch["images"])
        output, extra = self.model.apply(
            {"params": params, **extra}, pixels, mutable=["codebook"], rngs={"restart": key}
        )
        mse = jnp.square(output.reconstruction - pixels).mean()
        config = self.experiment.vqgan
        loss = mse + config.commitment * output.commitment
        metrics = {
            "loss": loss,
            "mse": mse,
            "commitment": output.commitment,
            **code_usage(output.codes, config.codes),
        }
        return LossOutput(loss, {name: Mean(value, 1.0) for name, value in metrics.items()}, extra)

    def stream(self, split: Literal["train", "validation"]) -> RecordStream:
        """The source's pictures, shuffled."""
        experiment = self.experiment
        return RecordStream(
            {"images": self._pictures(split)},
            experiment.data.batch,
            experiment.seed,
            jax.process_index(),
            jax.process_count(),
        )

    @functools.cache  # noqa: B019 - a learner lives as long as its process
    def _pictures(self, split: str) -> UInt8[np.ndarray, "B Y X 3"]:
        source = open_source(self.experiment.data, split, self.experiment.seed)
        segments = (s for i in range(len(source)) for s in source[i].segments)
        pictures = [segment for segment in segments if not isinstance(segment, str)]
        if not pictures:
            raise UserError(f"{self.experiment.data.source} has no pictures for {split}; add some.")
        return np.stack(pictures)


def code_usage(codes: Int[Array, "B T"], count: int) -> dict[str, Float[Array, ""]]:
    """Share of the codebook that a batch uses, and its perplexity (codes, were all used alike)."""
    shares = jnp.bincount(codes.reshape(-1), length=count) / codes.size
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(shares), 0.0))
    return {"code_usage": (shares > 0).mean(), "code_perplexity": jnp.exp(entropy)}


def load(run_dir: epath.PathLike) -> ImageTokenizer:
    """The image tokenizer of a run or of exported weights; `UserError` if there is none."""
    run = checkpoint.load_run(run_dir)
    if run.experiment.learner != "vqgan":
        raise UserError(
            f"{run_dir} is the run of a {run.experiment.learner}, not of an image tokenizer; "
            "correct tokenizers.image."
        )
    return ImageTokenizer(run.experiment.vqgan, run.variables)
