"""Distances of two sets of images by their features: Fréchet (FID) and kernel (KID).

FID (arXiv 1706.08500) compares means and covariances, all in float64; KID (arXiv 1801.01401) is the
squared maximum mean discrepancy under the kernel (x·y / D + 1)³.
"""

import dataclasses
import io
import math
from collections.abc import Iterable

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_arrays, write_atomic
from cm3jax.shapes import Float

RESAMPLES = 50
SUBSETS, SUBSET = 100, 1000
_PIECE = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and unbiased covariance of features."""

    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]

    def save(self, path: epath.PathLike) -> None:
        """Write the `.npz` with `mu` and `sigma` that pytorch-fid and clean-fid read."""
        buffer = io.BytesIO()
        np.savez(buffer, mu=self.mean, sigma=self.covariance)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: epath.PathLike) -> "Gaussian":
        """Read such a file; `UserError` when it is missing, damaged, of another form, NaN, or has a
        `sigma` that is not a covariance."""
        try:
            mean, covariance = map(_real, read_arrays(path, "mu", "sigma").values())
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path} holds no statistics ({error}); give an .npz file with `mu` and `sigma`."
            ) from None
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise UserError(
                f"{path} has mu {mean.shape} and sigma {covariance.shape}; a vector and a square "
                "matrix of its length are statistics."
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(
                f"{path} has mu or sigma with NaN or infinity, of which no distance can be made; "
                "make the statistics again."
            )
        # An eigendecomposition reads one triangle only and would hide the other.
        apart = np.abs(covariance - covariance.T).max(initial=0)
        if (
            not mean.size
            or apart > 1e-3 * np.abs(covariance).max()
            or (covariance.diagonal() < 0).any()
        ):
            raise UserError(
                f"{path} has a sigma that is not a covariance (symmetric, no variance below 0); "
                "make the statistics again."
            )
        return cls(mean, covariance)


def _real(numbers: np.ndarray) -> np.ndarray:
    """As float64; `TypeError` for complex numbers, which a cast would cut in half."""
    if np.iscomplexobj(numbers):
        raise TypeError("complex numbers")
    return np.asarray(numbers, np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Sums of a stream of features, in memory that does not grow with it."""

    count: float
    mean: Float[np.ndarray, " D"]
    scatter: Float[np.ndarray, "D D"]
    """Sum of outer products of the deviations from the mean."""

    @classmethod
    def of(cls, features: Float[np.ndarray, "B D"], weights: np.ndarray | None = None) -> "Moments":
        """Moments of a piece of the stream; `weights` say how often each row counts."""
        x = features.astype(np.float64)
        times = np.ones(len(x)) if weights is None else weights.astype(np.float64)
        count = float(times.sum())
        mean = times @ x / max(count, 1.0)
        x -= mean
        return cls(count, mean, (x * times[:, None]).T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both pieces (Chan, Golub and LeVeque's update, which does not cancel)."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        scatter = self.scatter + other.scatter
        scatter += np.outer(step * (self.count * other.count / count), step)
        return Moments(count, mean, scatter)

    @property
    def gaussian(self) -> Gaussian:
        """Mean and covariance; `UserError` of fewer than two."""
        if self.count < 2:
            raise UserError("statistics need at least two images; give more.")
        return Gaussian(self.mean, self.scatter / (self.count - 1))


def moments(pieces: Iterable[Float[np.ndarray, "_ D"]], width: int) -> Moments:
    """Moments of all pieces of a stream of features of `width`."""
    total = Moments(0.0, np.zeros(width), np.zeros((width, width)))
    for piece in pieces:
        total += Moments.of(piece)
    return total


class Frechet:
    """The squared Fréchet distance to one Gaussian, the reference."""

    def __init__(self, reference: Gaussian):
        self._reference = reference
        values, vectors = np.linalg.eigh(reference.covariance)
        self._root = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def __call__(self, other: Gaussian) -> float:
        """|μ - ν|² + tr S + tr T - 2 tr (S^½ T S^½)^½, all roots of symmetric matrices.

        `UserError` where the two have features of different width.
        """
        mine = self._reference
        if mine.mean.shape != other.mean.shape:
            raise UserError(
                f"features have {len(other.mean)} numbers, the reference statistics "
                f"{len(mine.mean)}; make both with the same network."
            )
        inner = self._root @ other.covariance @ self._root
        cross = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(0)).sum()
        step = mine.mean - other.mean
        traces = np.trace(mine.covariance) + np.trace(other.covariance)
        return float(step @ step + traces - 2 * cross)

    def interval(
        self, features: Float[np.ndarray, "B D"], seed: int, resamples: int = RESAMPLES
    ) -> tuple[float, float]:
        """95 % interval of the distance of `features`, by the bootstrap over images.

        FID of a resample is too large, because images repeat in it; what it is too large by is
        the difference of the resamples' mean and the value, and is taken off. The reference is
        taken as it is. `features` may be on disk: a piece at a time is read.
        """
        value = self(_resampled(features, np.ones(len(features))))
        rng = np.random.default_rng(seed)
        share = np.full(len(features), 1 / len(features))
        drawn = [
            self(_resampled(features, rng.multinomial(len(features), share)))
            for _ in range(resamples)
        ]
        low, high = np.quantile(drawn, (0.025, 0.975)) - np.mean(drawn) + value
        return float(max(low, 0.0)), float(high)


def _resampled(features: Float[np.ndarray, "B D"], weights: np.ndarray) -> Gaussian:
    width = features.shape[1]
    total = Moments(0.0, np.zeros(width), np.zeros((width, width)))
    for start in range(0, len(features), _PIECE):
        part = slice(start, start + _PIECE)
        total += Moments.of(features[part], weights[part])
    return total.gaussian


def kid(
    made: Float[np.ndarray, "B D"], real: Float[np.ndarray, "R D"], seed: int = 2020
) -> tuple[float, tuple[float, float]]:
    """The mean over 100 subsets of 1,000 images of either set, and a 95 % interval.

    Fewer images make smaller subsets. The seed's default draws torch-fidelity's subsets. Subsets
    vary more than the mean over all images would, by the root of how many times larger these are.
    """
    size = min(SUBSET, len(made), len(real))
    if size < 2:
        raise UserError("KID needs at least two images on either side; give more.")
    rng = np.random.RandomState(seed)  # others draw with this one
    found = []
    for _ in range(SUBSETS):
        x = made[np.sort(rng.choice(len(made), size, replace=False))]
        y = real[np.sort(rng.choice(len(real), size, replace=False))]
        found.append(_discrepancy(x.astype(np.float64), y.astype(np.float64)))
    value = float(np.mean(found))
    spread = 1.96 * float(np.std(found)) * math.sqrt(size / min(len(made), len(real)))
    return value, (value - spread, value + spread)


def _discrepancy(x: Float[np.ndarray, "B D"], y: Float[np.ndarray, "B D"]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def apart(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(apart(x) + apart(y) - 2 * kernel(x, y).mean())
