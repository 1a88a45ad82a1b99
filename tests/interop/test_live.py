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


def test_a_torch_checkpoint_is_the_same_run(tmp_path):
    import torch

    from cm3jax.checkpoint import load_run
    from cm3jax.interop import taming_vqgan

    source, config = foreign.write_vqgan(tmp_path / "in")
    state = {key: torch.from_numpy(value) for key, value in foreign.state("vq").items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "in" / "vqgan.ckpt")
    taming_vqgan.convert(source, tmp_path / "a", config)
    taming_vqgan.convert(tmp_path / "in" / "vqgan.ckpt", tmp_path / "b", config)
    runs = [load_run(tmp_path / name).variables for name in "ab"]
    jax.tree.map(np.testing.assert_array_equal, *runs)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_fid_s_network_as_torch_saves_it_has_torch_fidelity_s_features(tmp_path, zipped):
    """pytorch-fid's file is of the older format, with the classifier and counters in it."""
    import torch

    from cm3jax.evaluate.features import Extractor
    from cm3jax.evaluate.inception_weights import load_inception, shapes
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


def test_older_clip_folders_are_the_same_encoder(tmp_path):
    """They have pytorch_model.bin alone; a pickle in its place is not run."""
    import pickle

    import safetensors.numpy
    import torch

    from cm3jax.errors import UserError
    from cm3jax.interop import hf_clip
    from cm3jax.learners.clip import load
    from tests.interop.test_malformed import _Trap

    source = foreign.write_clip(tmp_path / "in", "patch-8")
    hf_clip.convert(source, tmp_path / "a")
    weights = safetensors.numpy.load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    state = {key: torch.from_numpy(value) for key, value in weights.items()}
    torch.save(state, source / "pytorch_model.bin")
    hf_clip.convert(source, tmp_path / "b")
    assert load(tmp_path / "a").fingerprint == load(tmp_path / "b").fingerprint
    trap = pickle.dumps({"logit_scale": _Trap(tmp_path / "sprung")})
    (source / "pytorch_model.bin").write_bytes(trap)
    with pytest.raises(UserError, match="more than tensors, which could run code"):
        hf_clip.convert(source, tmp_path / "c")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "c").exists()


def test_inception_in_torchs_own_format(tmp_path):
    import torch

    from cm3jax.evaluate.inception_weights import convert_inception, load_inception, shapes
    from tests.evaluate import inputs

    tensors = {name: torch.from_numpy(value) for name, value in inputs.weights(shapes(1)).items()}
    tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(7)
    torch.save(tensors, tmp_path / "fid.pth")
    convert_inception(tmp_path / "fid.pth", tmp_path / "fid.safetensors")
    ours, theirs = (load_inception(tmp_path / f"fid.{kind}") for kind in ("safetensors", "pth"))
    assert ours.fingerprint == theirs.fingerprint
    assert theirs.unused == ("Conv2d_1a_3x3.bn.num_batches_tracked",)


def _require_exported(run, folder):
    """transformers loads an export, all of it, and computes our logits and our codes."""
    import torch
    from transformers import ChameleonForConditionalGeneration
    from transformers.models.chameleon.image_processing_pil_chameleon import (
        ChameleonImageProcessorPil,
    )

    from cm3jax.checkpoint import load_run
    from cm3jax.interop import hf_chameleon
    from cm3jax.model.decoder import Decoder
    from cm3jax.tokenizers.image_tokenizer import to_pixels
    from cm3jax.tokenizers.vqgan_model import VQGAN

    hf_chameleon.export(run, folder)
    model, told = ChameleonForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values()), told  # nothing missing, unexpected or of another shape
    ours, images = load_run(run), load_run(run / "vqgan")
    ids = hf_chameleon.read_checkpoint(folder).vocabulary.ids
    rows = np.random.default_rng(0).integers(0, len(ids), (2, 24))
    ones, places = np.ones_like(rows), np.broadcast_to(np.arange(24), rows.shape)
    decoder = Decoder(ours.experiment.model, len(ids))
    inputs = [jax.numpy.asarray(x, jax.numpy.int32) for x in (rows, places, ones)]
    hidden = decoder.apply({"params": ours.variables["params"]}, *inputs)
    logits = decoder.apply({"params": ours.variables["params"]}, hidden, method="logits")
    with torch.no_grad():
        theirs = model.lm_head(model.model(torch.tensor(ids[rows])).last_hidden_state).numpy()
    np.testing.assert_allclose(theirs[..., ids], logits, atol=2e-4 * np.abs(theirs).max())
    pictures = np.round((cases.scenes(2) + 1) * 127.5).astype(np.uint8)
    pixels = np.asarray(to_pixels(jax.numpy.asarray(pictures)))
    processor = ChameleonImageProcessorPil.from_pretrained(folder)
    read = np.stack(processor(list(pictures))["pixel_values"])
    np.testing.assert_allclose(read.transpose(0, 2, 3, 1), pixels, atol=1e-5)
    codes = VQGAN(images.experiment.vqgan).apply(
        images.variables, jax.numpy.asarray(pixels), method="encode"
    )
    with torch.no_grad():
        found = model.model.vqmodel.encode(torch.from_numpy(read)).image_tokens
    assert (found.numpy().reshape(2, -1) == np.asarray(codes)).mean() >= 0.99


@pytest.mark.parametrize("name", cases.CASES)
def test_transformers_loads_the_export_of_an_import(tmp_path, name):
    from cm3jax.interop import hf_chameleon

    source = foreign.write_chameleon(tmp_path / "in", name)
    hf_chameleon.convert(source, tmp_path / "run", None, source / "config.json")
    _require_exported(tmp_path / "run", tmp_path / "back")


def test_transformers_loads_the_export_of_our_own(tmp_path):
    foreign.write_own(tmp_path / "run")
    _require_exported(tmp_path / "run", tmp_path / "out")
