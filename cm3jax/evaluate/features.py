"""Images to Inception features: three published ways to resize, and the network on all devices.

| mode | resizing to 299 pixels a side | who |
|---|---|---|
| `clean` | bicubic with antialiasing, in floats | clean-fid |
| `legacy_pytorch` | bilinear between pixel centres, no antialiasing | pytorch-fid |
| `legacy_tensorflow` | bilinear from upper left corners, no antialiasing | TTUR, torch-fidelity |
"""

import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import jax
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from cm3jax import partition
from cm3jax.config import MeshConfig
from cm3jax.evaluate.inception_network import SIZE, Inception
from cm3jax.evaluate.inception_weights import InceptionWeights
from cm3jax.shapes import Array, Float, RgbImage

Resize = Literal["clean", "legacy_pytorch", "legacy_tensorflow"]


_BATCH, _BATCH_CPU = 32, 2
"""Images that a device reads at once; a CPU gains nothing from more."""


class Extractor:
    """Inception on `devices` (default: all of this process), each with its share of a batch.

    Except for rounding, the features of an image do not depend on the others in its batch.
    """

    def __init__(
        self,
        weights: InceptionWeights,
        mode: Resize = "clean",
        devices: int | None = None,
    ):
        count = jax.local_device_count() if devices is None else devices
        mesh = partition.make_mesh(MeshConfig(data=count))
        self.mode, self.width = mode, 64 * weights.width
        self.name = f"Inception v3 of 2015, weights {weights.fingerprint}"
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._batch = count * (_BATCH_CPU if on_cpu else _BATCH)
        self._rows = partition.batch_sharding(mesh)
        self._variables = jax.device_put(weights.variables, partition.replicated(mesh))
        self._apply = _program(weights.width, mesh)

    def features(self, pictures: Iterable[RgbImage]) -> Iterator[Float[np.ndarray, "B D"]]:
        """Features of images of any size, in order and in pieces; few images are held."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = iter(pictures)
            while part := list(itertools.islice(waiting, self._batch)):
                pixels = np.stack(list(pool.map(self._prepare, part)))
                padding = [(0, self._batch - len(part)), *[(0, 0)] * 3]
                batch = jax.device_put(np.pad(pixels, padding), self._rows)
                yield np.asarray(self._apply(self._variables, batch))[: len(part)]

    def all_features(self, pictures: Iterable[RgbImage]) -> Float[np.ndarray, "B D"]:
        """Features of images of any size, in order and in one array."""
        return np.concatenate(list(self.features(pictures)))

    def _prepare(self, picture: RgbImage) -> Float[np.ndarray, "299 299 3"]:
        return scale(resize(picture, self.mode), self.mode)


@functools.cache
def _program(width: int, mesh: Mesh) -> Callable[..., Array]:
    """The network, compiled once however many extractors there are."""
    rows, whole = partition.batch_sharding(mesh), partition.replicated(mesh)
    return jax.jit(Inception(width).apply, in_shardings=(whole, rows), out_shardings=rows)


def resize(picture: RgbImage, mode: Resize) -> Float[np.ndarray, "299 299 3"]:
    """The image at the network's size, 0 to 255, never rounded."""
    if mode == "clean":
        channels = [PIL.Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(picture, -1, 0)]
        bicubic = PIL.Image.Resampling.BICUBIC
        parts = [np.asarray(channel.resize((SIZE, SIZE), bicubic)) for channel in channels]
        return np.stack(parts, axis=-1).clip(0, 255)
    offset = np.float32(0.5 if mode == "legacy_pytorch" else 0.0)
    rows = _blend(picture.astype(np.float32), offset)
    return _blend(rows.swapaxes(0, 1), offset).swapaxes(0, 1)


def _blend(x: Float[np.ndarray, "Y X 3"], offset: np.float32) -> Float[np.ndarray, "299 X 3"]:
    """Linear interpolation along the first axis; pixels are `offset` inside their cells."""
    # In float32, whose rounding of a place is part of what others compute.
    place = (np.arange(SIZE, dtype=np.float32) + offset) * np.float32(len(x) / SIZE) - offset
    place = place.clip(0, None)
    low = np.minimum(place.astype(int), len(x) - 1)
    high = np.minimum(low + 1, len(x) - 1)
    share = (place - low).astype(np.float32)[:, None, None]  # of the upper pixel
    return x[low] + (x[high] - x[low]) * share


def scale(pixels: Float[np.ndarray, "299 299 3"], mode: Resize) -> Float[np.ndarray, "299 299 3"]:
    """0..255 to about -1..1: as pytorch-fid does, or as the 2015 graph."""
    if mode == "legacy_pytorch":
        return pixels * np.float32(2 / 255) - 1
    return (pixels - 128) / 128
