"""What images lose on their way through an image tokenizer, in all and by kind of record.

PSNR, SSIM, LPIPS and rFID (FID of reconstructions against their originals) where their networks'
weights are given, and what of the codebook is in use; of emblems and emoji also what a reader still
reads.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import DataConfig, VQGANLossConfig
from cm3jax.emblems.reader import read_batch
from cm3jax.emoji.reader import EmojiReader
from cm3jax.evaluate import chance, fid
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.fid import Frechet
from cm3jax.evaluate.protocol import (
    PromptSet,
    Protocol,
    Score,
    stamp,
    tree_fingerprint,
)
from cm3jax.learners import vqgan
from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.shapes import Bool, Float, Int, UInt8
from cm3jax.tokenizers.fidelity import code_usage, psnr, ssim
from cm3jax.tokenizers.image_tokenizer import to_pixels
from cm3jax.tokenizers.lpips import load_lpips, lpips_distances

_BATCH = 16
_FEWEST = 2
"""Images of a label from which on there are distances of distributions."""


def evaluate_reconstruction(
    run_dir: epath.PathLike,
    split: Literal["train", "validation"] = "validation",
    count: int = 0,
    source: str = "",
    lpips: epath.PathLike = "",
    extractor: Extractor | None = None,
) -> dict[str, Score]:
    """`psnr.all`, `psnr.LABEL`, `rfid.all`, ... of the split's first `count` images (0: all).

    `source` replaces the run's `data.source`, `lpips` and `extractor` bring the weights of those
    figures. Raises `UserError` where `run_dir` holds no image tokenizer or the source no images.
    """
    experiment, tokenizer = load_run(run_dir).experiment, vqgan.load(run_dir)
    data = dataclasses.replace(
        experiment.data,
        source=source or experiment.data.source,
        image_size=experiment.vqgan.image_size,
    )
    plain = dataclasses.replace(experiment, data=data, vqgan_loss=VQGANLossConfig())
    pictures = VQGANLearner(plain).pictures(split)
    images = pictures.images[: count or None]
    labels = np.asarray(pictures.labels[: len(images)])
    codes = tokenizer.encode(images)
    remade = tokenizer.decode(codes)
    figures = picture_figures(images, remade, lpips)
    features = None
    if extractor is not None:
        features = (extractor.all_features(images), extractor.all_features(remade))
    protocol = stamp(
        PromptSet.of(f"pictures of {data.source}, {data.image_size} pixels", split, [images]),
        _READERS.get(data.source, "none"),
        tokenizer.fingerprint,
        seed=experiment.seed,
        resize=extractor.mode if extractor else "none",
        extractor=extractor.name if extractor else "none",
    )
    readings = _readings(data, split, experiment.seed, images, remade)
    scores: dict[str, Score] = {}
    for label, mine in _slices(labels):
        for name, values in figures.items():
            own = figure_protocol(name, protocol, lpips)
            scores[f"{name}.{label}"] = Score.mean(values[mine].tolist(), own)
        scores |= _usage(codes[mine], experiment.vqgan.codes, label, protocol)
        if features is not None and mine.sum() >= _FEWEST:
            real, made = features
            scores[f"rfid.{label}"] = frechet_score(
                real[mine], made[mine], experiment.seed, protocol
            )
        for name, reading in readings.items():
            scores[f"{name}.{label}"] = reading.score(mine, protocol)
    return dict(sorted(scores.items()))


_READERS = {
    "emblems": "the emblems' reader",
    "emoji": "emoji.Reader: nearest of all pictures at the scene's places and sizes",
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """What a reader said of every image."""

    right: Bool[np.ndarray, " B"]
    chance: Callable[[Bool[np.ndarray, " B"]], float]
    """What guessing scores on some of them."""

    def score(self, mine: Bool[np.ndarray, " B"], protocol: Protocol) -> Score:
        return Score.share(self.right[mine].tolist(), self.chance(mine), protocol)


def _readings(
    data: DataConfig,
    split: str,
    seed: int,
    images: UInt8[np.ndarray, "B Y X 3"],
    remade: UInt8[np.ndarray, "B Y X 3"],
) -> dict[str, _Reading]:
    """What can still be read from reconstructions; nothing of what has no reader."""
    if data.source == "emblems":
        truth, read = ([one.scene for one in read_batch(part)] for part in (images, remade))
        right = [one is not None and one == other for one, other in zip(truth, read, strict=True)]

        def another(mine: Bool[np.ndarray, " B"]) -> float:
            return chance.of_another_answer([truth[row] for row in np.flatnonzero(mine)])

        return {"read_exact": _Reading(np.asarray(right), another)}
    if data.source == "emoji":
        from cm3jax.emoji.builder import open_examples

        examples = open_examples(data.raw, seed, data.image_size)
        reader = EmojiReader(examples.catalogue, data.image_size)
        scenes = [examples.example(split, row).scene for row in range(len(images))]
        guesses = np.array([reader.chance ** len(scene.things) for scene in scenes])
        return {
            name: _Reading(
                np.asarray(reader.shows(remade, scenes, styles)),
                lambda mine: float(guesses[mine].mean()),
            )
            for name, styles in (("read_thing", False), ("read_look", True))
        }
    return {}


def _slices(labels: np.ndarray) -> Iterator[tuple[str, Bool[np.ndarray, " B"]]]:
    yield "all", np.ones(len(labels), bool)
    for label in sorted(set(labels)):
        yield str(label), labels == label


def picture_figures(
    images: UInt8[np.ndarray, "B Y X 3"],
    remade: UInt8[np.ndarray, "B Y X 3"],
    lpips: epath.PathLike = "",
) -> dict[str, Float[np.ndarray, " B"]]:
    """PSNR in dB, SSIM and, with weights, LPIPS of images against the true ones."""
    weights = load_lpips(lpips) if lpips else None

    @jax.jit
    def measure(true, again):
        found = {"psnr": psnr(true, again), "ssim": ssim(true, again)}
        if weights is not None:
            found["lpips"] = lpips_distances(weights, to_pixels(true), to_pixels(again))
        return found

    parts = []
    for start in range(0, len(images), _BATCH):
        pair = [part[start : start + _BATCH] for part in (images, remade)]
        fill = [(0, _BATCH - len(pair[0])), (0, 0), (0, 0), (0, 0)]
        found = measure(*(np.pad(part, fill) for part in pair))
        parts.append({name: np.asarray(value)[: len(pair[0])] for name, value in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def figure_protocol(name: str, protocol: Protocol, lpips: epath.PathLike) -> Protocol:
    """The stamp of one of `picture_figures`: that of LPIPS names its network's weights."""
    if name != "lpips":
        return protocol
    network = f"LPIPS of VGG16, weights {tree_fingerprint(load_lpips(lpips))}"
    return dataclasses.replace(protocol, extractor=network)


def _usage(
    codes: Int[np.ndarray, "B T"], count: int, label: str, protocol: Protocol
) -> dict[str, Score]:
    """Scores of these images only: facts, without an interval to either side."""
    return {
        f"{name}.{label}": Score(
            float(value), len(codes), None, (float(value), float(value)), protocol
        )
        for name, value in code_usage(jnp.asarray(codes), count).items()
    }


def frechet_score(
    real: Float[np.ndarray, "B D"], made: Float[np.ndarray, "B D"], seed: int, protocol: Protocol
) -> Score:
    """FID of made images by their features, with its interval."""
    frechet = Frechet(fid.moments([real], real.shape[1]).gaussian)
    value = frechet(fid.moments([made], made.shape[1]).gaussian)
    return Score(value, len(made), None, frechet.interval(made, seed), protocol)
