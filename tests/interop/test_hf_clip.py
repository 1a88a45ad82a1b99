"""CLIP folders in, against what transformers computes (`make_references.py`)."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from PIL.Image import Resampling

from cm3jax.config import ClipConfig
from cm3jax.errors import UserError
from cm3jax.interop import folders, hf_clip
from cm3jax.learners.clip import load
from cm3jax.retrieval.clip_encoder import CLIP, fit_picture, normalise_pixels, text_rows
from cm3jax.tokenizers.image_tokenizer import preprocess
from tests.interop import cases, foreign


@pytest.fixture(scope="module", params=cases.CLIPS)
def case(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("clip")
    source = foreign.write_clip(home / "in", request.param)
    report = hf_clip.convert(source, home / "out")
    assert [key.ours for key in report if "position_ids" in key.key] == ["(computed here)"]
    return request.param, load(home / "out"), foreign.stored(f"clip-{request.param}")


def test_token_ids_are_those_of_the_tokenizer(case):
    _, encoder, stored = case
    pieces = [encoder.tokenizer.encode(text) for text in cases.TEXTS]
    np.testing.assert_array_equal(text_rows(pieces, encoder.config, 16), stored["ids"])


def test_pixels_are_those_of_the_processor(case):
    _, encoder, stored = case
    pictures = np.stack([fit_picture(picture, encoder.config) for picture in cases.photographs()])
    np.testing.assert_allclose(normalise_pixels(pictures), stored["pixels"], atol=1e-6)


@pytest.mark.parametrize("filter_", [Resampling.LANCZOS, Resampling.BICUBIC])
def test_cutting_first_is_almost_resizing_first(filter_):
    """By as much as the docstrings of `preprocess` and `interop.clip` say."""
    apart, total = 0, 0
    for seed, (across, down) in enumerate([(350, 61), (97, 413), (260, 250), (480, 640)]):
        y, x = np.mgrid[:down, :across] / (seed + 3)
        waves = np.stack([np.sin(x + c) + np.cos(y - c) for c in range(3)], -1) * 60 + 128
        image = PIL.Image.fromarray(waves.astype(np.uint8))
        short = min(across, down)
        whole = image.resize((224 * across // short, 224 * down // short), filter_)
        left, top = ((side - 224) // 2 for side in whole.size)
        other = np.asarray(whole.crop((left, top, left + 224, top + 224)), int)
        difference = np.abs(preprocess(image, 224, filter_) - other)
        assert difference.max() <= 2
        apart, total = apart + np.count_nonzero(difference), total + difference.size
    assert apart / total <= 0.001


def test_vectors_are_those_of_transformers(case):
    _, encoder, stored = case
    np.testing.assert_allclose(encoder.encode_texts(cases.TEXTS), stored["text"], atol=1e-5)
    pictures = np.stack([fit_picture(picture, encoder.config) for picture in cases.photographs()])
    np.testing.assert_allclose(encoder.encode_images(pictures), stored["image"], atol=1e-5)


def test_every_tensor_matters(case):
    name, encoder, stored = case
    weights, model = foreign.state(f"clip-{name}"), CLIP(encoder.config)
    ids, pixels = jnp.asarray(stored["ids"][:3]), jnp.asarray(stored["pixels"])
    apply = jax.jit(model.apply)
    places = hf_clip.clip_places(encoder.config)
    arrays = {place.path: foreign.read(place, weights) for place in places}
    for place in places:
        (key,) = place.keys
        if key == "logit_scale":  # of the training loss
            continue
        changed = {key: np.roll(weights[key], 1, axis=-1) + np.float32(0.05)}
        text, image = apply(
            foreign.tree(arrays | {place.path: foreign.read(place, changed)}), ids, pixels
        )
        apart = max(np.abs(text - stored["text"][:3]).max(), np.abs(image - stored["image"]).max())
        assert apart > 1e-4 or ".k_proj.bias" in key, key  # softmax takes that bias away again
    assert {place.keys[0] for place in places} == weights.keys()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"do_center_crop": False}, "steps"),
        ({"resample": 0}, "resample"),
        ({"size": {"shortest_edge": 30}}, "size"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_std": 3}, "image_std"),
        ({"do_pad": True}, "steps"),
        ({"size": 24, "default_to_square": True}, "steps"),
        ({"image_processor_type": "SiglipImageProcessor"}, "class"),
        ({"crop_pct": 0.9}, "has crop_pct=0.9"),
    ],
)
def test_other_processors_are_refused(tmp_path, change, match):
    source = foreign.write_clip(tmp_path / "in", "patch-8", **change)
    with pytest.raises(UserError, match=match):
        hf_clip.read_clip_config(source)


@pytest.mark.parametrize("name", ["alone", "beside", "other part"])
def test_processors_saved_by_transformers_5(tmp_path, name):
    """`processor_config.json` holds the image processor; it goes before the older file."""
    source = foreign.write_clip(tmp_path / "in", "patch-8")
    old = source / "preprocessor_config.json"
    values = json.loads(old.read_text())
    extra = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True}
    whole = {"image_processor": values | extra, "processor_class": "CLIPProcessor"}
    if name == "alone":
        old.unlink()
    elif name == "beside":
        old.write_text(json.dumps(values | {"resample": 1}))
    else:
        del whole["image_processor"]
    (source / "processor_config.json").write_text(json.dumps(whole))
    assert hf_clip.read_clip_config(source).resize == "bicubic"
    whole["image_processor"] = values | {"image_mean": [0.5, 0.5, 0.5]}
    (source / "processor_config.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"processor_config\.json: its image_mean"):
        hf_clip.read_clip_config(source)


def test_other_models_are_refused(tmp_path):
    source = foreign.write_clip(tmp_path / "in", "patch-8")
    config = json.loads((source / "config.json").read_text())
    for change, match in (
        ({"model_type": "siglip"}, "siglip"),
        ({"text_config": config["text_config"] | {"hidden_act": "gelu"}}, "one activation"),
        ({"text_config": config["text_config"] | {"vocab_size": "many"}}, "vocab_size"),
        ({"vision_config": 3}, "vision_config"),
    ):
        (source / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=match):
            hf_clip.read_clip_config(source)
    text = config["text_config"] | {"vocab_size": 521, "eos_token_id": 520}
    (source / "config.json").write_text(json.dumps(config | {"text_config": text}))
    with pytest.raises(UserError, match="token_embedding"):
        hf_clip.convert(source, tmp_path / "out")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """huggingface_hub's cache with one model in it, and no network."""
    from huggingface_hub import constants

    home, commit = tmp_path / "hub" / "models--acme--clip-tiny", "5" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "blobs").mkdir()
    snapshot = home / "snapshots" / commit
    snapshot.parent.mkdir()
    foreign.write_clip(snapshot, "patch-8")
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = home / "blobs" / f"{number:040x}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_cached_model_is_found_by_its_id(cache, tmp_path):
    assert folders.find("acme/clip-tiny") == cache
    hf_clip.convert(folders.find("acme/clip-tiny"), tmp_path / "a")
    hf_clip.convert(cache, tmp_path / "b")
    one, other = (load(tmp_path / name) for name in "ab")
    assert one.fingerprint == other.fingerprint


def test_offline_an_unknown_id_raises_user_error(cache, tmp_path):
    with pytest.raises(UserError, match="neither the hub nor its cache gave") as error:
        folders.find("acme/other")
    assert "\n" not in str(error.value)
    for name in ("acme", "a/b/c", str(tmp_path / "none"), "../x"):
        with pytest.raises(UserError, match="is no folder; give the one"):
            folders.find(name)
    (cache / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither"):
        hf_clip.convert(folders.find("acme/clip-tiny"), tmp_path / "out")


def test_vit_b_32_is_the_default(tmp_path):
    source = foreign.write_clip(tmp_path / "in", "patch-8")
    (source / "config.json").write_text('{"model_type": "clip"}')
    (source / "preprocessor_config.json").write_text('{"size": 224, "crop_size": 224}')
    assert hf_clip.read_clip_config(source) == ClipConfig(resize="bicubic")
