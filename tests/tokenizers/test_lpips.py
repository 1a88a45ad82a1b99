"""LPIPS against a plain numpy transcription, and reading the weights' own file."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cm3jax.errors import UserError
from cm3jax.tokenizers import lpips

NUMBERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""VGG16's convolutions by level, as torchvision numbers them."""


@pytest.fixture(scope="module")
def state():
    """Weights under the names of the `lpips` package, every value random and none zero."""
    draw = np.random.default_rng(0)
    arrays, width = {}, 3
    for level, ((channels, _), numbers) in enumerate(zip(lpips.LEVELS, NUMBERS, strict=True)):
        for number in numbers:
            shape = (channels, width, 3, 3)
            name = f"net.slice{level + 1}.{number}"
            arrays[f"{name}.weight"] = draw.normal(0, (2 / (9 * width)) ** 0.5, shape)
            arrays[f"{name}.bias"] = draw.normal(0, 0.1, channels)
            width = channels
        arrays[f"lin{level}.model.1.weight"] = draw.uniform(0.1, 1, (1, channels, 1, 1))
        arrays[f"lins.{level}.model.1.weight"] = arrays[f"lin{level}.model.1.weight"]
    arrays["scaling_layer.shift"] = np.array([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    path.write_bytes(safetensors.numpy.save(state))
    return path


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def measure():
    return jax.jit(lpips.LPIPS().apply)


def transcription(state, left, right, weights):
    """One pair of images [3, Y, X], float64, layer by layer."""
    pairs = []
    for picture in (left, right):
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x, features = (picture - shift[:, None, None]) / scale[:, None, None], []
        for level, numbers in enumerate(NUMBERS):
            if level:
                x = blocks(x).max((2, 4))
            for number in numbers:
                name = f"net.slice{level + 1}.{number}"
                x = np.maximum(convolve(x, state[f"{name}.weight"], state[f"{name}.bias"]), 0)
            features.append(x / (np.sqrt((x**2).sum(0)) + 1e-10))
        pairs.append(features)
    total, weights = 0.0, weights[None]
    for level, (one, other) in enumerate(zip(*pairs, strict=True)):
        linear = state[f"lin{level}.model.1.weight"].reshape(-1, 1, 1)
        distances = (linear * (one - other) ** 2).sum(0)
        total += (distances * weights[0]).sum() / weights.sum()
        weights = blocks(weights).mean((2, 4)) if level < 4 else weights
    return total


def blocks(x):
    """[C, Y, X] as [C, Y / 2, 2, X / 2, 2], which is [.., .., rows, .., columns]."""
    return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2)


def convolve(x, kernel, bias):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    kernel = kernel.astype(np.float64)
    out = np.tile(bias[:, None, None].astype(np.float64), (1, height, width))
    for row in range(3):
        for column in range(3):
            part = padded[:, row : row + height, column : column + width]
            out += np.tensordot(kernel[:, :, row, column], part, 1)
    return out


def test_equals_the_transcription(state, file, pictures, measure):
    left, right = pictures
    weights = np.random.default_rng(2).uniform(0.5, 3, (2, 16, 16)).astype(np.float32)
    seen = measure(lpips.load_lpips(file), left, right, weights)
    plain = measure(lpips.load_lpips(file), left, right, np.ones_like(weights))
    assert not np.allclose(seen, plain, rtol=1e-3)
    for row, by in ((0, weights), (1, np.ones_like(weights))):
        pair = left[row].transpose(2, 0, 1), right[row].transpose(2, 0, 1)
        expected = transcription(state, *pair, by[row])
        assert (seen, plain)[row][row] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_slopes(file, pictures):
    """Every array has a part in the distance; where nothing is active the slope stays finite."""
    left, right = map(jnp.asarray, pictures[:, :1])
    distance = lambda variables, x: lpips.LPIPS().apply(variables, x, right)[0]  # noqa: E731
    measure = jax.jit(jax.value_and_grad(distance, argnums=(0, 1)))
    value, slopes = measure(lpips.load_lpips(file), left)
    assert value > 0
    assert all(np.isfinite(slope).all() and slope.any() for slope in jax.tree.leaves(slopes))
    value, (_, slope) = measure(jax.tree.map(np.zeros_like, lpips.load_lpips(file)), left)
    assert value == 0
    assert np.isfinite(slope).all()


def test_npz_holds_the_same(state, file, tmp_path):
    path = tmp_path / "vgg.npz"
    np.savez(path, **state)
    jax.tree.map(np.testing.assert_array_equal, lpips.load_lpips(path), lpips.load_lpips(file))


def test_random_weights_have_its_shapes(file):
    random = lpips.random_weights(1)
    assert jax.tree.map(np.shape, random) == jax.tree.map(np.shape, lpips.load_lpips(file))
    other = lpips.random_weights(2)["params"]["conv_0_0"]["kernel"]
    assert not np.array_equal(random["params"]["conv_0_0"]["kernel"], other)


def test_refuses_other_files(state, file, tmp_path):
    def refuse(content, message, name="x.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            lpips.load_lpips(path)

    refuse(file.read_bytes()[:-9], "not a complete .safetensors")
    refuse(b"not a zip", "not a complete .safetensors or .npz", "x.npz")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    refuse(pickled.getvalue(), "not a complete .safetensors or .npz", "y.npz")
    less = {name: array for name, array in state.items() if name != "lin2.model.1.weight"}
    refuse(safetensors.numpy.save(less), "linear_2 is missing there")
    wrong = state | {"net.slice1.0.bias": np.ones(7, np.float32)}
    refuse(safetensors.numpy.save(wrong), r"conv_0_0/bias is \(7,\) there and \(64,\)")
    more = state | {"head.weight": np.ones(7, np.float32)}
    refuse(safetensors.numpy.save(more), "head.weight, which LPIPS does not have")
    with pytest.raises(UserError, match="are missing; put them there"):
        lpips.load_lpips(tmp_path / "nothing.npz")
