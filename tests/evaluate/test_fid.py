"""Against `reference/fid.npz`, which torch-fidelity and clean-fid made (`make_fid.py`)."""

import itertools
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cm3jax.errors import UserError
from cm3jax.evaluate import fid
from cm3jax.evaluate.features import Extractor, resize, scale
from cm3jax.evaluate.fid import Frechet, Gaussian, Moments
from cm3jax.evaluate.inception_network import Inception
from cm3jax.evaluate.inception_weights import (
    convert_inception,
    from_tensors,
    load_inception,
    shapes,
    to_tensors,
)
from cm3jax.interop.layout import Key
from tests.evaluate import inputs
from tests.evaluate.reference.make_emblem_fid import SPLITS, pictures

REFERENCE = Path(__file__).parent / "reference"
STORED = np.load(REFERENCE / "fid.npz")
EVERY = 13


@pytest.fixture(scope="module")
def tensors():
    return inputs.weights(shapes(2))


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "narrow.safetensors"
    idle = {"fc.weight": np.zeros((8, 128), np.float32), "x.num_batches_tracked": np.zeros(1)}
    safetensors.numpy.save_file(tensors | idle, path)
    return load_inception(path)


@pytest.mark.parametrize("size", [("small", 24), ("large", 400)], ids=lambda size: size[0])
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch", "legacy_tensorflow"])
def test_resizing_is_that_of_others(mode, size):
    name, pixels = size
    picture = inputs.pictures(1, seed=5, size=pixels)[0][:, : pixels - 3]
    found = resize(picture, mode)
    assert found.shape == (299, 299, 3)
    np.testing.assert_allclose(found[::EVERY, ::EVERY], STORED[f"{name}_{mode}"], atol=1e-4)


def test_every_tensor_arrives_and_returns(weights, tensors):
    again = to_tensors(weights.variables)
    assert again.keys() == tensors.keys()
    assert all((again[name] == tensors[name]).all() for name in tensors)
    assert weights.unused == ("fc.weight", "x.num_batches_tracked")
    changed = from_tensors({**tensors, "Mixed_7c.branch_pool.bn.bias": np.ones(12)}, "x")
    assert changed.fingerprint != weights.fingerprint


@pytest.mark.slow
def test_features_on_eight_devices_are_torch_fidelity_s(weights):
    extractor = Extractor(weights, "legacy_tensorflow", devices=8)
    pictures = inputs.pictures(4096, seed=1)[:8]
    found = np.concatenate(list(extractor.features(pictures)))
    assert found.shape == (8, extractor.width) == (8, 128)
    np.testing.assert_allclose(found, STORED["features_2"], atol=1e-4 * STORED["features_2"].max())


@pytest.mark.slow
def test_every_tensor_matters(tensors):
    """A reference that some tensor does not reach would say nothing about it: a tenth more in any
    one, and the features are no longer torch-fidelity's."""
    (picture,), mode = inputs.pictures(4096, seed=1)[:1], "legacy_tensorflow"
    pixels = jnp.asarray(scale(resize(picture, mode), mode)[None])
    features = jax.jit(lambda variables: Inception(2).apply(variables, pixels)[0])

    def differs(tensors: dict[str, np.ndarray]) -> float:
        found = features(from_tensors(tensors, "x").variables)
        return np.abs(found - STORED["features_2"][0]).max() / STORED["features_2"].max()

    assert differs(tensors) < 1e-4
    for name, tensor in tensors.items():
        assert np.all(tensor), name
        assert differs(tensors | {name: 1.1 * tensor}) > 1e-4, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_5b.branch1x1.conv.weight": None}, "lacks 1 tensors"),
        ({"Mixed_9.conv.weight": np.zeros(1)}, "has unknown 1 tensors, Mixed_9"),
        ({"Mixed_5b.branch1x1.bn.bias": np.zeros(3)}, "misshapes 1 tensors"),
        ({"Conv2d_1a_3x3.conv.weight": None}, "holds no Conv2d_1a_3x3"),
    ],
)
def test_other_tensors_raise_user_error(tensors, change, message):
    wrong = {name: value for name, value in (tensors | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        from_tensors(wrong, "weights.pth")


def test_a_file_that_holds_no_tensors_raises_user_error(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        load_inception(tmp_path / "none.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        load_inception(tmp_path / "cut.safetensors")
    (tmp_path / "a.pth").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match="torch is not installed"):
        load_inception(tmp_path / "a.pth")


def test_converted_weights_are_the_same_without_torch(weights, tensors, tmp_path):
    path = tmp_path / "in.safetensors"
    idle = {"fc.weight": np.zeros((8, 128), np.float32)}
    safetensors.numpy.save_file(tensors | idle, path)
    report = convert_inception(path, tmp_path / "out.safetensors")
    assert len(report) == len(tensors) + 1
    assert report[-1] == Key("fc.weight", "", (), "(not of the features)")
    assert load_inception(tmp_path / "out.safetensors").fingerprint == weights.fingerprint
    for out, match in (("out.safetensors", "exists"), ("out.pth", "must be named")):
        with pytest.raises(UserError, match=match):
            convert_inception(path, tmp_path / out)


def both(width: int, count: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    return inputs.features(count, width, 1), inputs.features(count, width, 2)


def gaussian(features: np.ndarray, piece: int = 500) -> Gaussian:
    parts = (features[start : start + piece] for start in range(0, len(features), piece))
    return fid.moments(parts, features.shape[1]).gaussian


@pytest.mark.slow  # smaller ones are compared below by formula
def test_distances_of_4096_feature_vectors_are_torch_fidelity_s():
    made, real = both(64)
    expected, kid = STORED["distances_random_64"]
    assert Frechet(gaussian(real))(gaussian(made)) == pytest.approx(expected, rel=1e-6)
    assert fid.kid(made, real)[0] == pytest.approx(kid, rel=1e-6)


def require_the_formula(width: int) -> None:
    """FID by the eigenvalues of the product, which is not symmetric, as torch-fidelity has it."""
    made, real = (gaussian(features) for features in both(width))
    cross = np.sqrt(np.linalg.eigvals(made.covariance @ real.covariance).astype(complex)).real.sum()
    step, traces = made.mean - real.mean, np.trace(made.covariance) + np.trace(real.covariance)
    assert Frechet(real)(made) == pytest.approx(step @ step + traces - 2 * cross, rel=1e-6)


def test_the_symmetric_root_is_the_formula_s():
    require_the_formula(96)


def test_kid_is_the_formula_s():
    """Written with loops: over all pairs of different images of a set, and over all of both."""
    made, real = (features.astype(np.float64) for features in both(8, 12))

    def likeness(a, b):
        return np.mean([(x @ y / 8 + 1) ** 3 for x in a for y in b if x is not y])

    made, real = list(made), list(real)
    expected = likeness(made, made) + likeness(real, real) - 2 * likeness(made, real)
    assert fid.kid(np.stack(made), np.stack(real))[0] == pytest.approx(expected, rel=1e-9)


def test_statistics_in_pieces_are_those_of_all_at_once_and_others_read_them(tmp_path):
    features = inputs.features(300, 16, 1) + 1000  # a sum of squares would cancel
    pieces = gaussian(features, piece=7)
    np.testing.assert_allclose(pieces.mean, features.astype(np.float64).mean(0), rtol=1e-14)
    whole = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(pieces.covariance, whole, atol=1e-12)
    pieces.save(tmp_path / "stats.npz")
    assert set(np.load(tmp_path / "stats.npz")) == {"mu", "sigma"}
    again = Gaussian.load(tmp_path / "stats.npz")
    assert (again.covariance == pieces.covariance).all()
    weighted = Moments.of(features[:50], np.arange(50)).gaussian
    repeated = np.repeat(features[:50], np.arange(50), axis=0).astype(np.float64)
    np.testing.assert_allclose(weighted.covariance, np.cov(repeated, rowvar=False), atol=1e-9)


def test_the_distance_of_gaussians_known_by_formula():
    one = Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    other = Gaussian(np.float64([3, 4]), np.diag([9.0, 0.0]))
    assert Frechet(one)(other) == pytest.approx(25 + (1 - 3) ** 2 + 4)
    assert Frechet(one)(one) == pytest.approx(0, abs=1e-12)


def test_the_bootstrap_s_interval_holds_what_new_pictures_give():
    real = gaussian(inputs.features(4000, 16, 2))
    frechet = Frechet(real)
    low, high = frechet.interval(inputs.features(400, 16, 1), seed=0)
    rng = np.random.default_rng(7)
    pool = inputs.features(20_000, 16, 1)
    fresh = [frechet(gaussian(pool[rng.choice(len(pool), 400)])) for _ in range(100)]
    assert 0.5 * np.ptp(np.quantile(fresh, [0.025, 0.975])) < high - low
    assert high - low < 2 * np.ptp(np.quantile(fresh, [0.025, 0.975]))
    assert np.mean([low < value < high for value in fresh]) > 0.6
    assert frechet.interval(pool[:50], seed=1) == frechet.interval(pool[:50], seed=1)


def test_statistics_that_do_not_fit_raise_user_error(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK")
    np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    for name, message in (("a", "no statistics"), ("b", r"mu \(3,\)"), ("c", "no statistics")):
        with pytest.raises(UserError, match=message):
            Gaussian.load(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="features have 3 numbers"):
        Frechet(Gaussian(np.zeros(2), np.eye(2)))(Gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(UserError, match="at least two"):
        fid.moments([np.zeros((1, 2), np.float32)], 2).gaussian  # noqa: B018  # raises


@pytest.mark.slow
def test_features_of_the_full_network_are_torch_fidelity_s():
    full = from_tensors(inputs.weights(shapes(32)), "random")
    extractor = Extractor(full, "legacy_tensorflow", devices=1)
    found = np.concatenate(list(extractor.features(inputs.pictures(2, seed=3))))
    expected = STORED["features_32"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


@pytest.mark.slow
def test_one_device_and_eight_find_the_same_distance(weights):
    made, real = inputs.pictures(96, seed=1), inputs.pictures(96, seed=2)
    found = []
    for devices in (1, 8):
        extractor = Extractor(weights, devices=devices)
        one, two = (np.concatenate(list(extractor.features(p))) for p in (made, real))
        found.append(Frechet(gaussian(two))(gaussian(one)))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.slow
def test_distances_of_emblems_are_torch_fidelity_s(weights):
    """Of few images; `make_emblem_fid.py` says how to compare 8,192."""
    expected = json.loads((REFERENCE / "emblem_fid.json").read_text())["2"]
    extractor = Extractor(weights, "legacy_tensorflow")
    made, real = (
        np.concatenate(
            list(extractor.features(itertools.islice(pictures(split), expected["pictures"])))
        )
        for split in SPLITS.values()
    )
    assert Frechet(gaussian(real))(gaussian(made)) == pytest.approx(expected["fid"], rel=1e-3)
    assert fid.kid(made, real)[0] == pytest.approx(expected["kid"], rel=1e-3)


@pytest.mark.slow
def test_full_size_distances_are_the_formula_s():
    require_the_formula(2048)


def test_statistics_of_30_000_vectors_stream_in_bounded_memory():
    width, piece = 256, 1000
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        total = fid.moments((rng.random((piece, width), np.float32) for _ in range(30)), width)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total.count == 30_000
    everything = 30_000 * width * 8
    assert peak < everything / 4


@pytest.mark.parametrize("more", [{"fc.bias": 1000}, {"AuxLogits.conv0.conv.weight": 1}])
def test_torchvision_s_inception_is_not_fid_s(more):
    """It has the same names in front, and gives another FID."""
    tensors = {name: np.zeros(size, np.float32) for name, size in more.items()}
    tensors["Conv2d_1a_3x3.conv.weight"] = np.zeros((32, 3, 3, 3), np.float32)
    with pytest.raises(UserError, match="is not FID's network"):
        from_tensors(tensors, "it")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_with_nan_are_refused(tmp_path, bad):
    for mu, sigma in ((np.array([bad, 0.0]), np.eye(2)), (np.zeros(2), np.diag([1.0, bad]))):
        np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
        with pytest.raises(UserError, match="NaN or infinity"):
            Gaussian.load(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("mu", "sigma", "said"),
    [
        (np.zeros(2), np.array([[1.0, 9.0], [0.0, 1.0]]), "not a covariance"),
        (np.zeros(2), -np.eye(2), "not a covariance"),
        (np.zeros(0), np.zeros((0, 0)), "not a covariance"),
        (np.zeros(2) + 1j, np.eye(2), "holds no statistics"),
    ],
    ids=["triangle", "negative", "empty", "complex"],
)
def test_statistics_that_no_pictures_have_are_refused(tmp_path, mu, sigma, said):
    """An eigendecomposition reads one triangle, and a cast drops imaginary parts, silently."""
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    with pytest.raises(UserError, match=said):
        Gaussian.load(tmp_path / "s.npz")
