"""LPIPS: how different two images look, by the features of a VGG16 (arXiv 1801.03924).

The weights are not part of this package. `load_lpips` reads those of the `lpips` package (version
0.1, net "vgg") under their own names from .safetensors or .npz; whoever has the package writes them
so:

    np.savez("lpips.npz", **{k: v.numpy() for k, v in lpips.LPIPS(net="vgg").state_dict().items()})

`random_weights` stand in where there are none. The distance is then between features that nobody
trained, measured the same way. It is a loss, not LPIPS, and must not be reported as such.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from cm3jax.errors import UserError
from cm3jax.io.files import read_arrays
from cm3jax.io.texts import read_regular
from cm3jax.shapes import Array, Float

LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG16's levels; a distance is taken after each."""
SMALLEST = 2 ** (len(LEVELS) - 1)
"""Pixels along a side from which on every level has a position."""

_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_CONVOLUTION = re.compile(r"(?:net\.slice\d|features)\.(\d+)\.(weight|bias)")
_LINEAR = re.compile(r"lin(\d)\.model\.1\.weight")
_IGNORED = re.compile(r"lins\.\d\.model\.1\.weight|scaling_layer\.(shift|scale)|classifier\..*")
"""Repetitions, constants, and parts of VGG16 that see no use here."""


class LPIPS(nn.Module):
    """Distances of images in [-1, 1]; the variables are `load_lpips`'s or `random_weights`'."""

    @nn.compact
    def __call__(
        self,
        left: Float[Array, "B Y X 3"],
        right: Float[Array, "B Y X 3"],
        weights: Float[Array, "B Y X"] | None = None,
    ) -> Float[Array, " B"]:
        """One distance per pair: the mean over positions of each level, summed over levels.

        `weights` say how much a pixel counts; a level's position has the mean of its pixels'.
        """
        rows = len(left)
        x = (jnp.concatenate([left, right]) - _SHIFT) / _SCALE
        weights = jnp.ones((*left.shape[:3], 1)) if weights is None else weights[..., None]
        total = jnp.zeros(rows)
        for level, (channels, count) in enumerate(LEVELS):
            if level:
                x = nn.max_pool(x, (2, 2), (2, 2))
                weights = nn.avg_pool(weights, (2, 2), (2, 2))
            for number in range(count):
                x = nn.relu(nn.Conv(channels, (3, 3), name=f"conv_{level}_{number}")(x))
            # The small number keeps the root's slope finite where nothing is active.
            unit = x / (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-20) + 1e-10)
            apart = jnp.square(unit[:rows] - unit[rows:])
            linear = self.param(f"linear_{level}", nn.initializers.ones, (channels,))
            total += jnp.sum(weights[..., 0] * (apart @ linear), (1, 2)) / jnp.sum(
                weights, (1, 2, 3)
            )
        return total


def lpips_distances(
    variables: Mapping[str, Any],
    left: Float[Array, "B Y X 3"],
    right: Float[Array, "B Y X 3"],
    weights: Float[Array, "B Y X"] | None = None,
) -> Float[Array, " B"]:
    """What `LPIPS` gives for pairs of images in [-1, 1]."""
    return nn.apply(LPIPS.__call__, LPIPS())(variables, left, right, weights)


def load_lpips(path: epath.PathLike) -> dict[str, Any]:
    """The variables of an `LPIPS` from a file of named arrays.

    Raises `UserError` when it is missing, is no such file, or an array is missing, unknown or of
    another shape.
    """
    found: dict[tuple[str, ...], np.ndarray] = {}
    for name, array in _read(path).items():
        if match := _CONVOLUTION.fullmatch(name):
            kernel = match[2] == "weight"
            key = (_numbers().get(int(match[1]), "unknown"), "kernel" if kernel else "bias")
            found[key] = array.transpose(2, 3, 1, 0) if kernel and array.ndim == 4 else array
        elif match := _LINEAR.fullmatch(name):
            found[f"linear_{match[1]}",] = array.reshape(-1)
        elif not _IGNORED.fullmatch(name):
            raise UserError(f"{path} holds {name}, which LPIPS does not have; give its weights.")
    leaves = traverse_util.flatten_dict(_shapes()["params"])
    shapes = {where: leaf.shape for where, leaf in leaves.items()}
    for where in sorted(shapes.keys() | found.keys()):
        here, there = shapes.get(where), found[where].shape if where in found else None
        if here != there:
            raise UserError(
                f"{path} is not LPIPS with VGG16: {'/'.join(where)} is {there or 'missing'} there "
                f"and {here or 'nothing'} in LPIPS; give the weights of net `vgg`."
            )
    params = {where: np.asarray(array, np.float32) for where, array in found.items()}
    return {"params": traverse_util.unflatten_dict(params)}


def random_weights(seed: int = 0) -> dict[str, Any]:
    """Variables that nobody trained: He-normal kernels, no biases, all channels counting alike."""
    draw = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:3]))
            return (deviation * draw.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, 0.0 if path[-1].key == "bias" else 1.0, np.float32)

    return jax.tree.map_with_path(fill, _shapes())


def _shapes() -> dict[str, Any]:
    blank = jnp.zeros((1, SMALLEST, SMALLEST, 3))
    return jax.eval_shape(LPIPS().init, jax.random.key(0), blank, blank)


def _numbers() -> dict[int, str]:
    """Our names by VGG16's numbers: a convolution and its ReLU are two, a pooling is one."""
    names, number = {}, 0
    for level, (_, count) in enumerate(LEVELS):
        for part in range(count):
            names[number] = f"conv_{level}_{part}"
            number += 2
        number += 1
    return names


def _read(path: epath.PathLike) -> Mapping[str, np.ndarray]:
    path = epath.Path(path)
    if not path.exists():
        raise UserError(
            f"the LPIPS weights {path} are missing; put them there, or set "
            "vqgan_loss.perceptual=0, or vqgan_loss.lpips=random."
        )
    import safetensors.numpy

    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load(read_regular(path, None))
        return read_arrays(path)
    except Exception as error:  # a type that numpy has not is a KeyError there
        raise UserError(
            f"{path} is not a complete .safetensors or .npz file ({error}); write it again."
        ) from None
