"""Training the image tokenizer: reconstruction, commitment, perception and an adversary.

Encoder and decoder learn from the error of the reconstruction, the encoder also from the commitment
loss; the codebook follows by averages or by its own loss (`cm3jax.tokenizers.quantiser`).
`vqgan_loss` adds what photographs need (Esser et al. 2021): LPIPS, and a discriminator that is
trained with the tokenizer and is part of its train state.

By default no absolute error: its gradient does not shrink with the error, so that the noise of
common patches, long since right, drowns the rare ones that are not.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm3jax import checkpoint, partition
from cm3jax.config import Experiment, VQGANLossConfig
from cm3jax.data.pipeline import Equipped, NoRecords, RecordStream
from cm3jax.data.sources import MaskedSource, RawRecord, Source, open_source
from cm3jax.data.usable import usable
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.shapes import Array, Float, Int, Key, UInt8
from cm3jax.tokenizers import discriminator, lpips
from cm3jax.tokenizers.fidelity import code_usage, psnr, ssim
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer, to_bytes, to_pixels
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.training.loss import LossOutput, Mean
from cm3jax.training.metrics import StepCost


@dataclasses.dataclass(frozen=True, eq=False)
class SplitPictures:
    """All images of a split."""

    images: UInt8[np.ndarray, "B Y X 3"]
    labels: tuple[str, ...]
    """The kind of record that each is of."""
    masks: UInt8[np.ndarray, "B Y X"] | None
    """255 where pixels count most; None where `vqgan_loss.region` is 0."""


class VQGANLearner:
    """A `VQGAN`, its losses and all images of the source, read into memory once.

    Raises `UserError` if the source's images do not have the size that `vqgan` says, or if the
    perceptual loss lacks its weights.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.model = VQGAN(experiment.vqgan)
        if experiment.data.image_size != experiment.vqgan.image_size:
            raise UserError(
                f"data.image_size={experiment.data.image_size} and vqgan.image_size="
                f"{experiment.vqgan.image_size} differ; make them equal."
            )
        config = experiment.vqgan_loss
        self.adversary = discriminator.Discriminator(
            config.discriminator_channels, config.discriminator_layers
        )
        self._lpips = None
        if config.perceptual:
            self._lpips = _lpips_weights(config, experiment.vqgan.image_size, experiment.seed)

    @functools.cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprint of the LPIPS weights, if the loss uses them: the only foreign part of the
        learner.
        """
        if self._lpips is None:
            return {}
        return {"lpips": digest(*jax.tree.leaves(self._lpips))}

    @functools.cached_property
    def work(self) -> StepCost:
        """The cost of one global batch: three times the tokenizer's forward pass, as XLA counts it
        (0 where it counts none).

        Discriminator and LPIPS are not counted.
        """
        config = self.experiment.vqgan
        variables = jax.eval_shape(self._init_tokenizer, jax.random.key(0))
        picture = jnp.zeros((1, config.image_size, config.image_size, 3))
        cost = jax.jit(self.model.apply).lower(variables, picture).cost_analysis() or {}
        batch = self.experiment.data.batch
        return StepCost(batch * config.grid**2, 3.0 * batch * cost.get("flops", 0.0))

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """Parameters and codebook, boxed with their logical axes.

        With an adversarial loss, `params` holds the discriminator besides encoder and decoder.
        """
        variables = self._init_tokenizer(key)
        if not self.experiment.vqgan_loss.adversarial:
            return variables
        size = self.experiment.vqgan.image_size
        own = self.adversary.init(jax.random.fold_in(key, 1), jnp.zeros((1, size, size, 3)))
        return {**variables, "params": {**variables["params"], "discriminator": own["params"]}}

    def _init_tokenizer(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        size = self.experiment.vqgan.image_size
        return self.model.init(key, jnp.zeros((1, size, size, 3)))

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Mapping[str, Any],
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """Error of the reconstruction, weighted commitment, and in training adversarial losses.

        Their sum's gradient is the right one for both sides: what the discriminator minimises has
        no gradient in the tokenizer, nor the reverse. `metrics["loss"]` leaves them out, so that it
        means the same before and after they begin and in validation, which also measures PSNR and
        SSIM of the images in bytes.
        """
        pixels = to_pixels(batch["images"])
        error = functools.partial(self._error, pixels=pixels, batch=batch)
        # The codebook has no gradient to be held back, and is frozen like a parameter.
        follows = re.search(self.experiment.trained, "codebook") is not None

        def reconstruct(last):
            decoder = {**params["decoder"], "conv_out": {**params["decoder"]["conv_out"], **last}}
            output, changed = self.model.apply(
                {"params": {**params, "decoder": decoder}, **extra},
                pixels,
                mutable=["codebook"] if follows else [],
                rngs={"restart": key},
            )
            return output.reconstruction, (output, changed or extra)

        last = {"kernel": params["decoder"]["conv_out"]["kernel"]}
        adversarial = training and self.experiment.vqgan_loss.adversarial > 0
        if adversarial:
            remade, pull, (output, extra) = jax.vjp(reconstruct, last, has_aux=True)
        else:
            remade, (output, extra) = reconstruct(last)
        value, metrics = error(remade)
        config = self.experiment.vqgan
        loss = value + config.commitment * output.commitment + output.following
        metrics = {
            "loss": loss,
            **metrics,
            "commitment": output.commitment,
            **code_usage(output.codes, config.codes),
        }
        if adversarial:
            slope = jax.grad(lambda remade: error(remade)[0])
            more, theirs = self._adversarial(
                params["discriminator"], pixels, remade, slope, pull, step
            )
            loss, metrics = loss + more, metrics | theirs
        if not training:
            seen, images = to_bytes(remade), batch["images"]
            metrics |= {"psnr": psnr(images, seen).mean(), "ssim": ssim(images, seen).mean()}
        return LossOutput(loss, {name: Mean(value, 1.0) for name, value in metrics.items()}, extra)

    def _error(
        self, remade: Float[Array, "B Y X 3"], pixels: Float[Array, "B Y X 3"], batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Pixels and perception, each a mean weighted by `vqgan_loss.region`, and their metrics."""
        config = self.experiment.vqgan_loss
        squared = config.pixels == "l2"
        errors = jnp.square(remade - pixels) if squared else jnp.abs(remade - pixels)
        weights = None
        if config.region:
            weights = 1.0 + config.region * batch["masks"].astype(jnp.float32) / 255.0
            errors = errors * (weights / weights.mean())[..., None]
        total = errors.mean()
        metrics = {"mse" if squared else "mae": total}
        if config.perceptual:
            distance = lpips.lpips_distances(batch["lpips"], remade, pixels, weights).mean()
            metrics[self.perception] = distance
            total = total + config.perceptual * distance
        return total, metrics

    def _adversarial(
        self,
        params: Any,
        pixels: Float[Array, "B Y X 3"],
        remade: Float[Array, "B Y X 3"],
        slope: Callable[[Array], Array],
        pull: Callable[[Array], Any],
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """What is added to the loss, nothing before `adversarial_start` updates, and its metrics.

        `slope` is the gradient of the error in the reconstruction, `pull` takes such a gradient to
        the decoder's last layer.
        """
        config = self.experiment.vqgan_loss

        def verdicts(params, pictures):
            return self.adversary.apply({"params": params}, pictures)

        def fool(remade):
            verdict = verdicts(jax.lax.stop_gradient(params), remade)
            return discriminator.generator_loss(verdict)

        fixed = jax.lax.stop_gradient(remade)
        wanted, other = (pull(f(fixed))[0]["kernel"] for f in (slope, jax.grad(fool)))
        weight = config.adversarial * discriminator.adaptive_weight(wanted, other)
        weight = jnp.where(step >= config.adversarial_start, weight, 0.0)
        fooled = fool(remade)
        judged = discriminator.discriminator_loss(verdicts(params, pixels), verdicts(params, fixed))
        begun = (step >= config.adversarial_start).astype(jnp.float32)
        metrics = {
            "loss_generator": fooled,
            "loss_discriminator": judged,
            "adversarial_weight": weight,
        }
        return weight * fooled + begun * judged, metrics

    def stream(self, split: Literal["train", "validation"]) -> RecordStream | Equipped | NoRecords:
        """The source's images, shuffled; with the perceptual loss also the LPIPS weights."""
        experiment = self.experiment
        pictures = self.pictures(split) if split == "train" else self.held_back
        if pictures is None:
            return NoRecords()
        arrays = {"images": pictures.images}
        if pictures.masks is not None:
            arrays["masks"] = pictures.masks
        stream = RecordStream(
            arrays,
            experiment.data.batch,
            experiment.seed,
            jax.process_index(),
            jax.process_count(),
        )
        return stream if self._lpips is None else Equipped(stream, {"lpips": self.lpips})

    @property
    def perception(self) -> str:
        """What the perceptual loss is called: `lpips`, or `random_features`; empty without it."""
        config = self.experiment.vqgan_loss
        if not config.perceptual:
            return ""
        return "random_features" if config.lpips == "random" else "lpips"

    @functools.cached_property
    def lpips(self) -> Any:
        """The weights of the perceptual loss on every device of the mesh; None without it."""
        if self._lpips is None:
            return None
        whole = partition.replicated(partition.make_mesh(self.experiment.mesh))
        return jax.device_put(self._lpips, whole)

    @functools.cached_property
    def held_back(self) -> SplitPictures | None:
        """The images of validation; None, which is said, where there are none or most are
        broken."""
        try:
            return self.pictures("validation")
        except UserError as error:
            print(f"nothing is validated: {error}")
            return None

    @functools.cache  # noqa: B019 - a learner lives as long as its process
    def pictures(self, split: Literal["train", "validation"]) -> SplitPictures:
        """Every image of the source's sound records, those left out being said.

        Raises `UserError` if there are none, or no masks.
        """
        source = open_source(self.experiment.data, split, self.experiment.seed)
        images: list[np.ndarray] = []
        labels: list[str] = []
        masks: list[np.ndarray] = []
        for _, (record, weights) in usable(source, self._reader(source)):
            found = [segment for segment in record.segments if not isinstance(segment, str)]
            images += found
            labels += [record.kind] * len(found)
            masks += weights
        if not images:
            raise UserError(f"{self.experiment.data.source} has no images for {split}; add some.")
        weighs = self.experiment.vqgan_loss.region > 0
        return SplitPictures(np.stack(images), tuple(labels), np.stack(masks) if weighs else None)

    def _reader(self, source: Source) -> Callable[[int], tuple[RawRecord, Sequence[np.ndarray]]]:
        """What reads a record, and the masks of its images where `vqgan_loss.region` weighs."""
        if not self.experiment.vqgan_loss.region:
            return lambda index: (source[index], ())
        if not isinstance(source, MaskedSource):
            raise UserError(
                f"vqgan_loss.region={self.experiment.vqgan_loss.region} weighs masks, which "
                f"{self.experiment.data.source} does not have; set it to 0, or give a source with "
                "masks."
            )
        return lambda index: (source[index], source.masks(index))


def _lpips_weights(config: VQGANLossConfig, image_size: int, seed: int) -> Any:
    if not config.lpips:
        raise UserError(
            f"vqgan_loss.perceptual={config.perceptual} needs weights: give vqgan_loss.lpips a "
            "file of LPIPS weights, or `random` for untrained features, or set perceptual to 0."
        )
    if image_size < lpips.SMALLEST:
        raise UserError(
            f"vqgan_loss.perceptual={config.perceptual} looks at images of {lpips.SMALLEST} "
            f"pixels a side or more, not vqgan.image_size={image_size}; set it "
            "to 0."
        )
    if config.lpips == "random":
        return lpips.random_weights(seed)
    return lpips.load_lpips(config.lpips)


def load(run_dir: epath.PathLike) -> ImageTokenizer:
    """The image tokenizer of a run or of exported weights; `UserError` if there is none."""
    run = checkpoint.load_run(run_dir)
    if run.experiment.learner != "vqgan":
        raise UserError(
            f"{run_dir} is the run of a {run.experiment.learner}, not of an image tokenizer; "
            "correct tokenizers.image."
        )
    # A discriminator that was trained with it is no part of it.
    params = {k: v for k, v in run.variables["params"].items() if k != "discriminator"}
    return ImageTokenizer(run.experiment.vqgan, {**run.variables, "params": params})
