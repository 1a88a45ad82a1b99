"""Weights, images and features that are functions of their names and seeds: what the stored
references and the tests share, so that neither stores its inputs. numpy alone."""

import zlib

import numpy as np


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random tensors of a state dict, none of them zero, at a scale that keeps features in range.

    Each depends on its name and shape alone.
    """
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith(("weight", "running_var")):
        return rng.uniform(0.6, 1.4, shape).astype(np.float32)
    return rng.normal(scale=0.2, size=shape).astype(np.float32)


def pictures(count: int, seed: int, size: int = 24) -> np.ndarray:
    """uint8 [count, size, size, 3]: waves of random colours and directions under noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    angle, pace, phase = rng.uniform(0, 6, (3, count, 1, 1, 3))
    turned = np.cos(angle) * x[None, ..., None] + np.sin(angle) * y[None, ..., None]
    wave = 120 + 90 * np.sin(pace * turned * 3 + phase)
    noise = rng.normal(scale=rng.uniform(0, 30, (count, 1, 1, 1)), size=wave.shape)
    return (wave + noise).clip(0, 255).astype(np.uint8)


def features(count: int, width: int, seed: int) -> np.ndarray:
    """float32 [count, width], correlated and positive, as features after a ReLU are."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    hidden = rng.normal(size=(count, width)) @ mixing * 0.5 + 0.3 + 0.05 * seed
    return np.maximum(hidden, 0).astype(np.float32)
