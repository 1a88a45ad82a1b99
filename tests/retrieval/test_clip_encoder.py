import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import ClipConfig
from cm3jax.retrieval.clip_encoder import (
    CLIP,
    ClipEncoder,
    hf_name,
    normalise_pixels,
    text_and_image,
    text_rows,
)
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

CONFIG = ClipConfig(
    image_size=16,
    patch=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    text_width=24,
    text_layers=1,
    text_heads=2,
    text_context=40,
    text_vocab=302,
    width=16,
)
TEXTS = ["a red fox", "a blue fox on the moon", "", "fox " * 60]


@pytest.fixture(scope="module")
def variables():
    ids, pixels = jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 16, 16, 3))
    return jax.jit(CLIP(CONFIG).init)(jax.random.key(0), ids, pixels)


@pytest.fixture(scope="module")
def encoder(variables):
    return ClipEncoder(CONFIG, variables, TextTokenizer.train(TEXTS * 3, 300))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)


def _hf_keys(config: ClipConfig) -> set[str]:
    """The state dict of HF `CLIPModel`, written down from its module tree."""
    keys = {"logit_scale", "text_projection.weight", "visual_projection.weight"}
    keys |= {f"text_model.embeddings.{name}_embedding.weight" for name in ("token", "position")}
    keys |= {f"vision_model.embeddings.{name}_embedding.weight" for name in ("patch", "position")}
    keys.add("vision_model.embeddings.class_embedding")
    norms = ["text_model.final_layer_norm"]
    norms += ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    layers = [f"text_model.encoder.layers.{i}" for i in range(config.text_layers)]
    layers += [f"vision_model.encoder.layers.{i}" for i in range(config.vision_layers)]
    parts = [f"self_attn.{name}_proj" for name in "qkv"] + ["self_attn.out_proj"]
    parts += ["mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
    modules = norms + [f"{layer}.{part}" for layer in layers for part in parts]
    return keys | {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def test_parameters_map_one_to_one_to_hf(variables):
    paths = list(flax.traverse_util.flatten_dict(nn.unbox(variables["params"])))
    names = [hf_name(path) for path in paths]
    assert len(names) == len(set(names))
    assert set(names) == _hf_keys(CONFIG)


def test_every_axis_has_a_name(variables):
    boxed = variables["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    plain = [leaf for leaf in leaves if not isinstance(leaf, nn.LogicallyPartitioned)]
    assert [leaf.shape for leaf in plain] == [()]  # the logit scale


def test_normalise_is_clips():
    pixels = np.zeros((1, 1, 1, 3), np.uint8)
    pixels[0, 0, 0] = 255
    expected = (1 - np.array([0.48145466, 0.4578275, 0.40821073])) / [
        0.26862954,
        0.26130258,
        0.27577711,
    ]
    np.testing.assert_allclose(normalise_pixels(pixels)[0, 0, 0], expected, rtol=1e-6)


def test_texts_end_with_the_highest_id():
    assert text_rows([[5, 6], []], CONFIG, 6).tolist() == [
        [300, 5, 6, 301, 301, 301],
        [300, 301, 301, 301, 301, 301],
    ]
    assert text_rows([list(range(9))], CONFIG, 6).tolist() == [[300, 0, 1, 2, 3, 301]]


def test_texts_see_only_what_is_before(variables):
    """Causal attention: what follows the end token changes nothing."""
    model = CLIP(CONFIG)
    short, ends = (text_rows([[5, 6]], CONFIG, length) for length in (4, 8))
    zeros = np.pad(short, ((0, 0), (0, 4)))
    encode = jax.jit(functools.partial(model.apply, method=CLIP.text))
    vectors = [encode(variables, jnp.asarray(ids)) for ids in (short, ends, zeros)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)


def test_vectors_are_unit_and_independent_of_the_batch(encoder, images):
    texts = encoder.encode_texts(TEXTS)
    pictures = encoder.encode_images(images)
    assert texts.shape == (4, 16)
    assert texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-5)
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(encoder.encode_texts([text])[0], texts[i])
    np.testing.assert_allclose(encoder.encode_images(images[3:])[0], pictures[3], atol=1e-6)


def test_more_than_one_inner_batch(encoder, images):
    many = np.concatenate([images] * 30)
    np.testing.assert_allclose(
        encoder.encode_images(many)[-1], encoder.encode_images(images)[-1], atol=1e-6
    )


def test_document_is_the_mean_of_its_parts(encoder, images):
    text, picture = encoder.encode_texts(TEXTS[:1])[0], encoder.encode_images(images[:1])[0]
    both, only_text, only_image = encoder.encode_documents(
        [(TEXTS[0], images[0]), (TEXTS[0], None), (None, images[0])]
    )
    mean = (text + picture) / np.linalg.norm(text + picture)
    np.testing.assert_allclose(both, mean, atol=1e-5)
    np.testing.assert_allclose(only_text, text, atol=1e-5)
    np.testing.assert_allclose(only_image, picture, atol=1e-5)


def test_text_and_image_of_a_story(images):
    text, image = text_and_image(("first", images[0], "then", images[1]))
    assert text == "first then"
    np.testing.assert_array_equal(image, images[0])
    assert text_and_image((images[0],))[0] is None
    assert text_and_image(("only",))[1] is None


def test_another_picture_size_is_refused(encoder):
    with pytest.raises(ValueError, match="uint8 16x16x3"):
        encoder.encode_images(np.zeros((1, 8, 8, 3), np.uint8))


def test_fingerprint_follows_the_weights(encoder, variables):
    same = ClipEncoder(CONFIG, variables, encoder.tokenizer)
    other = ClipEncoder(CONFIG, jax.tree.map(lambda x: x + 1, variables), encoder.tokenizer)
    assert encoder.fingerprint == same.fingerprint != other.fingerprint
