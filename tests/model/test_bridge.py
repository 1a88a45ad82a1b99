"""The bridge equals the host path and gives the same ids on any mesh."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import MeshConfig
from cm3jax.model.bridge import TokenizerBridge
from cm3jax.partition import batch_sharding, make_mesh, shardings
from cm3jax.sequence.document import Image, Text, render
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.testing import experiment
from cm3jax.tokenizers.vqgan_model import VQGAN
from experiments.vqgan_256 import get_config

EXPERIMENT = experiment()
CONFIG, VOCAB = EXPERIMENT.vqgan, Vocab(EXPERIMENT.vocab)
BRIDGE = TokenizerBridge(CONFIG, VOCAB)
ROWS, WIDTH = 8, 5


@pytest.fixture(scope="module")
def boxed():
    size = CONFIG.image_size
    return jax.jit(BRIDGE.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    size = CONFIG.image_size
    return (
        rng.integers(0, VOCAB.config.text_pieces, (ROWS, WIDTH)).astype(np.int32),
        np.array([5, 0, 1, 4, 3, 2, 5, 0], np.int32),
        rng.uniform(-1, 1, (ROWS, size, size, 3)).astype(np.float32),
    )


@functools.cache
def permutation(codes=CONFIG.codes):
    """Which image id, counted from the first, stands for each code."""
    return np.random.default_rng(1).permutation(codes)


def permuted(boxed):
    """The same tokenizer over a vocabulary that numbers the codes in its own order.

    The table is the order of the codebook: an id is where its entry stands.
    """

    def reorder(path, leaf):
        if path[0].key != "codebook":
            return leaf
        return leaf.replace_boxed(leaf.value[np.argsort(permutation(len(leaf.value)))])

    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map_with_path(reorder, boxed, is_leaf=is_box)


def run(mesh_config, boxed, inputs, bridge=BRIDGE):
    """Pair ids, image ids and their images, computed on a mesh."""
    mesh = make_mesh(mesh_config)
    variables = jax.device_put(nn.unbox(boxed), shardings(mesh, boxed))
    inputs = jax.device_put(inputs, batch_sharding(mesh))

    with jax.set_mesh(mesh):
        return program(bridge, variables, *inputs)


@partial(jax.jit, static_argnums=0)
def program(bridge, variables, pieces, lengths, pixels):
    pairs = bridge.apply(variables, pieces, lengths, pixels, method="encode_pairs")
    ids = bridge.apply(variables, pixels, method="encode_images")
    return pairs, ids, bridge.apply(variables, ids, method="decode_images")


def test_variables_are_those_of_a_vqgan(boxed, inputs):
    shapes = jax.eval_shape(VQGAN(CONFIG).init, jax.random.key(0), inputs[2])
    assert jax.tree.map(jnp.shape, nn.unbox(boxed)) == jax.tree.map(jnp.shape, nn.unbox(shapes))


def test_equals_the_host_path(boxed, inputs):
    pieces, lengths, pixels = map(jnp.asarray, inputs)
    pairs, image_ids, pictures = run(MeshConfig(data=1), boxed, inputs)
    encode, decode = (jax.jit(partial(VQGAN(CONFIG).apply, method=m)) for m in ("encode", "decode"))
    codes = encode(nn.unbox(boxed), pixels)
    np.testing.assert_array_equal(image_ids, codes + VOCAB.first_image)
    decoded = decode(nn.unbox(boxed), codes)
    np.testing.assert_allclose(pictures, decoded, atol=1e-5)
    assert pairs.ids.shape == (ROWS, WIDTH + 1 + VOCAB.image_tokens)
    assert pairs.ids.dtype == np.int32
    for row in range(ROWS):
        text = (Text(tuple(pieces[row, : lengths[row]].tolist())),) if lengths[row] else ()
        document = (*text, Image(tuple(codes[row].tolist())))
        expected = render(document, VOCAB)
        assert pairs.lengths[row] == len(expected)
        np.testing.assert_array_equal(pairs.ids[row, : len(expected)], expected)
        assert (pairs.ids[row, len(expected) :] == VOCAB.pad).all()


@pytest.mark.parametrize("order", ["codes", "permuted"])
def test_the_mesh_does_not_matter(boxed, inputs, order):
    variables = boxed if order == "codes" else permuted(boxed)
    one = run(MeshConfig(data=1), variables, inputs)
    eight = run(MeshConfig(data=2, fsdp=2, tensor=2), variables, inputs)
    np.testing.assert_array_equal(one[0].ids, eight[0].ids)
    np.testing.assert_array_equal(one[0].lengths, eight[0].lengths)
    np.testing.assert_array_equal(one[1], eight[1])
    np.testing.assert_allclose(one[2], eight[2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_mesh_does_not_matter_at_full_size():
    """CM3Leon's tokenizer and vocabulary: 1,024 codes of 8,192 for 256 pixels."""
    full = get_config()
    vocab = Vocab(full.vocab)
    bridge = TokenizerBridge(full.vqgan, vocab)
    boxed = permuted(jax.jit(bridge.init)(jax.random.key(0), jnp.zeros((1, 256, 256, 3))))
    rng = np.random.default_rng(0)
    pieces = rng.integers(0, full.vocab.text_pieces, (4, 64)).astype(np.int32)
    coarse = rng.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    pixels = np.asarray(jax.image.resize(coarse, (4, 256, 256, 3), "cubic")).clip(-1, 1)
    inputs = pieces, np.array([64, 0, 17, 40], np.int32), pixels
    one = run(MeshConfig(data=1), boxed, inputs, bridge)
    eight = run(MeshConfig(data=2, fsdp=2, tensor=2), boxed, inputs, bridge)
    assert one[1].shape == (4, 1024)
    assert len(np.unique(one[1])) > 100
    np.testing.assert_array_equal(one[0].ids, eight[0].ids)
    np.testing.assert_array_equal(one[1], eight[1])
    np.testing.assert_allclose(one[2], eight[2], atol=1e-5)
    for ids, length in zip(np.asarray(one[0].ids), one[0].lengths, strict=True):
        assert (vocab.modality(ids[length - 1024 : length]) == int(Modality.IMAGE)).all()


def test_a_permuted_table_renames_ids_and_nothing_else(boxed, inputs):
    plain, renamed = (run(MeshConfig(data=1), v, inputs) for v in (boxed, permuted(boxed)))
    codes = np.asarray(plain[1]) - VOCAB.first_image
    np.testing.assert_array_equal(renamed[1], VOCAB.first_image + permutation()[codes])
    assert not np.array_equal(renamed[1], plain[1])
    np.testing.assert_allclose(renamed[2], plain[2], atol=1e-5)
    images = VOCAB.modality(np.asarray(plain[0].ids)) == int(Modality.IMAGE)
    np.testing.assert_array_equal(renamed[0].ids[~images], plain[0].ids[~images])
    again = VOCAB.first_image + permutation()[plain[0].ids[images] - VOCAB.first_image]
    np.testing.assert_array_equal(renamed[0].ids[images], again)
