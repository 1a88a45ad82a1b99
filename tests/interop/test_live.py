"""With torch: the references are what transformers computes now, and torch's own files are read.

The stored references carry the parity of the default suite; this ties them to what is installed.
CI installs torch beside the `test` extra and runs this file (`CM3JAX_PARITY=1`, under which a
missing torch fails).
"""

import importlib.util
import os

import jax
import numpy as np
import pytest

from tests.interop import cases, foreign

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None and not os.environ.get("CM3JAX_PARITY"),
        reason="torch is not installed; `pip install torch` and run again",
    ),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own
]


def _same(made: dict, name: str) -> None:
    stored = foreign.stored(name)
    assert made.keys() == stored.keys()
    for key, value in made.items():
        if key == "shapes":
            assert str(value) == str(stored[key])
        else:
            np.testing.assert_allclose(value, stored[key], atol=1e-4, err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", cases.CASES)
def test_chameleon(name):
    from tests.interop import make_references

    _same(make_references.chameleon(name), f"chameleon-{name}")


def test_vq():
    from tests.interop import make_references

    _same(make_references.vq(), "vq")


def test_clip(tmp_path):
    from tests.interop import make_references

    tokenizer = make_references.clip_tokenizer(tmp_path)
    written = (tmp_path / "clip-tokenizer.json").read_text()
    assert written == (cases.REFERENCE / "clip-tokenizer.json").read_text()
    for name in cases.CLIPS:
        _same(make_references.clip(name, tokenizer), f"clip-{name}")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_fid_s_network_as_torch_saves_it_has_torch_fidelity_s_features(tmp_path, zipped):
    """pytorch-fid's file is of the older format, with the classifier and counters in it."""
    import torch

    from cm3jax.evaluate.features import Extractor
    from cm3jax.interop.inception import load_inception, shapes
    from tests.evaluate import inputs
    from tests.evaluate.test_fid import STORED

    state = {name: torch.from_numpy(value) for name, value in inputs.weights(shapes(2)).items()}
    counters = {name.replace("running_mean", "num_batches_tracked") for name in state} - set(state)
    state |= {name: torch.tensor(7) for name in counters}
    state |= {"fc.weight": torch.zeros(1008, 128), "fc.bias": torch.zeros(1008)}
    path = tmp_path / "pt_inception.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    weights = load_inception(path)
    assert set(weights.unused) == {*counters, "fc.weight", "fc.bias"}
    pictures = inputs.pictures(4096, seed=1)[:8]
    found = np.concatenate(list(Extractor(weights, "legacy_tensorflow").features(pictures)))
    np.testing.assert_allclose(found, STORED["features_2"], atol=1e-4 * STORED["features_2"].max())


def test_a_torch_checkpoint_is_the_same_run(tmp_path):
    import torch

    from cm3jax.checkpoint import load_run
    from cm3jax.interop import vqgan

    source, config = foreign.write_vqgan(tmp_path / "in")
    state = {key: torch.from_numpy(value) for key, value in foreign.state("vq").items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "in" / "vqgan.ckpt")
    vqgan.convert(source, tmp_path / "a", config)
    vqgan.convert(tmp_path / "in" / "vqgan.ckpt", tmp_path / "b", config)
    runs = [load_run(tmp_path / name).variables for name in "ab"]
    jax.tree.map(np.testing.assert_array_equal, *runs)
