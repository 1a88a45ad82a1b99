"""VQGANs of the taming family against transformers: Chameleon's encoder, Janus's decoder."""

import builtins
import json
import pickle
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.checkpoint import load_run
from cm3jax.config import VQGANConfig
from cm3jax.errors import UserError
from cm3jax.interop import taming_vqgan
from cm3jax.learners.vqgan import load
from cm3jax.tokenizers.vqgan_model import VQGAN
from tests.interop import cases, foreign


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The imported run, its variables, and the network compiled."""
    home = tmp_path_factory.mktemp("vqgan")
    source, config = foreign.write_vqgan(home / "in")
    report = taming_vqgan.convert(source, home / "out", config)
    assert [key.ours for key in report if key.key.startswith("loss.")] == ["(of its training)"]
    loaded = load_run(home / "out")
    model = VQGAN(loaded.experiment.vqgan)

    def through(module, pixels, codes):
        return module.encoder(pixels), module.encode(pixels), module.decode(codes)

    network = jax.jit(partial(model.apply, method=through))
    codes = jnp.asarray(foreign.stored("vq")["codes"][:2], jnp.int32)

    def apply(variables, pixels):
        """Vectors and codes of 16 images, and the images of two grids of codes."""
        return network(variables, jnp.asarray(pixels), codes)

    return home, loaded, apply


@pytest.fixture(scope="module")
def stored():
    return foreign.stored("vq")


def test_codes_and_vectors_are_chameleons(run, stored):
    pixels = np.concatenate([cases.noise(64), cases.scenes(16)]).reshape(5, 16, 16, 16, 3)
    found = [run[2](run[1].variables, part)[:2] for part in pixels]
    np.testing.assert_allclose(found[0][0][:2], stored["vectors"], atol=1e-4)
    codes = np.concatenate([codes for _, codes in found])
    assert (codes == stored["codes"]).mean() >= 0.999
    assert len(np.unique(stored["codes"])) > cases.CODES // 2


def test_pictures_are_januss(run, stored):
    drawn = run[2](run[1].variables, cases.noise(16))[2]
    np.testing.assert_allclose(drawn, stored["drawn"], atol=1e-4)


@pytest.mark.slow
def test_every_tensor_matters(run, stored):
    """A reference that some tensor does not reach would say nothing about it."""
    weights, pixels = foreign.state("vq"), cases.noise(64)[:16]
    places = taming_vqgan.vqgan_places(run[1].experiment.vqgan)
    for place in places:
        (key,) = place.keys
        changed = np.roll(weights[key], 1, axis=0) + np.float32(0.05)
        node = foreign.tree({place.path: foreign.read(place, {key: changed})})
        vectors, _, drawn = run[2](_merged(run[1].variables, node), pixels)
        apart = [
            float(np.abs(np.asarray(ours) - stored[name]).max())
            for ours, name in ((vectors[:2], "vectors"), (drawn, "drawn"))
        ]
        # A softmax takes the bias of its keys away again.
        assert max(apart) > 1e-3 or key.endswith(".k.bias"), key
    assert {place.keys[0] for place in places} == weights.keys()


def _merged(tree: dict, other: dict) -> dict:
    return tree | {
        key: _merged(tree[key], value) if isinstance(value, dict) else value
        for key, value in other.items()
    }


def test_configs_there_and_back():
    for values in (cases.VQ, {**cases.VQ, "attn_type": None, "attn_resolutions": None}):
        config = taming_vqgan.read_vqgan_config(values, "it")
        assert (
            taming_vqgan.read_vqgan_config(taming_vqgan.write_vqgan_config(config), "it") == config
        )
    # Chameleon's, which is the default there.
    assert taming_vqgan.read_vqgan_config({}, "it") == VQGANConfig(
        image_size=512, multipliers=(1, 1, 2, 2, 4)
    )
    with pytest.raises(UserError, match="double_latent=True"):
        taming_vqgan.read_vqgan_config({"double_latent": True}, "it")
    with pytest.raises(UserError, match="none of taming's family"):
        taming_vqgan.write_vqgan_config(VQGANConfig(patch=2))


def test_yaml_and_json_say_the_same(tmp_path):
    _, config = foreign.write_vqgan(tmp_path / "in")
    for name, values in (("a", cases.VQ), ("b", {"vq_config": cases.VQ})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        assert taming_vqgan.read_vqgan_config(
            taming_vqgan._settings(path), "a"
        ) == taming_vqgan.read_vqgan_config(taming_vqgan._settings(config), "b")


def test_the_run_is_an_image_tokenizer(run):
    assert load(run[0] / "out").config == run[1].experiment.vqgan
    assert (run[0] / "out" / "report.txt").read_text().count("\n") == len(foreign.state("vq")) + 1


@pytest.mark.parametrize("text", ["", "[1, 2]", "model: {params: {}}", "model: 3", "a: [", "\0"])
def test_files_that_are_not_a_config_raise_user_error(tmp_path, text):
    source, config = foreign.write_vqgan(tmp_path / "in")
    config.write_text(text)
    with pytest.raises(UserError, match="config"):
        taming_vqgan.convert(source, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


class _Trap:
    """A pickle that would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_not_run(tmp_path):
    _, config = foreign.write_vqgan(tmp_path / "in")
    trap = pickle.dumps({"state_dict": _Trap(tmp_path / "sprung")})
    (tmp_path / "bare.ckpt").write_bytes(trap)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", trap)
        archive.writestr("archive/version", "3")
        archive.writestr("../../slip", "out of the folder")
    (tmp_path / "renamed.safetensors").write_bytes(trap)
    for name in ("bare.ckpt", "zip.ckpt", "renamed.safetensors"):
        with pytest.raises(UserError) as error:
            taming_vqgan.convert(tmp_path / name, tmp_path / "out", config)
        assert str(error.value).count(". ") == 0
    assert not (tmp_path / "sprung").exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "in",
        "bare.ckpt",
        "zip.ckpt",
        "renamed.safetensors",
    }


def test_a_torch_file_without_torch_raises_user_error(tmp_path, monkeypatch):
    _, config = foreign.write_vqgan(tmp_path / "in")
    (tmp_path / "a.ckpt").write_bytes(b"")
    real = builtins.__import__

    def without_torch(name, *rest):
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(UserError, match="install torch"):
        taming_vqgan.convert(tmp_path / "a.ckpt", tmp_path / "out", config)
    with pytest.raises(UserError, match="does not exist"):
        taming_vqgan.convert(tmp_path / "b.ckpt", tmp_path / "out", config)
