import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import DecoderConfig
from cm3jax.decode.params import as_read
from cm3jax.model import block
from cm3jax.model.cache import start_cache
from cm3jax.model.decoder import Decoder
from cm3jax.model.layers import apply_rope, dropout, rotations

CONFIG = DecoderConfig(
    layers=3, width=32, heads=4, head_width=8, ffn=64, context=40, dtype="float32", init_std=0.3
)
# The two Chameleons: pre-norm with dropout, and norms behind the branches with shared key heads.
SMALL = dataclasses.replace(
    CONFIG,
    positions="rope",
    qk_norm=True,
    norm="rms",
    activation="swiglu",
    tied=False,
    dropout=0.1,
)
LARGE = dataclasses.replace(SMALL, kv_heads=2, swin_norm=True, dropout=0.0)
SHIFTED = dataclasses.replace(SMALL, dropout=0.0, token_shift=True)
VOCAB = 50


@pytest.fixture(
    scope="module",
    params=[CONFIG, SMALL, LARGE, SHIFTED],
    ids=["cm3leon", "chameleon-7b", "chameleon-34b", "shifted"],
)
def model(request):
    return Decoder(request.param, VOCAB)


@pytest.fixture(scope="module")
def variables(model):
    """Parameters without the zeros of a fresh model, which would hide what they multiply."""
    row = jnp.zeros((1, 4), jnp.int32)
    fresh = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), row, row, row))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def tokens(*shape, seed=2):
    return jax.random.randint(jax.random.key(seed), shape, 0, VOCAB)


@partial(jax.jit, static_argnames=("model", "method"))
def apply(model, variables, *arguments, method="__call__"):
    """`model.apply`, compiled once per shape instead of run one operation at a time."""
    return model.apply(variables, *arguments, method=method)


def run(model, variables, rows):
    rows = jnp.asarray(rows)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    return apply(model, variables, rows, positions, jnp.ones_like(rows))


def test_a_fresh_model_predicts_uniformly_and_keeps_the_papers_initialisation(model):
    row = tokens(2, 8)
    fresh = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), row, row, row))["params"]
    layers = fresh["layers"]
    for kernel in (layers["out"]["kernel"], layers["feed_forward"]["down"]["kernel"]):
        # A norm that follows would blow up what comes out of zeros.
        assert np.any(kernel) == model.config.swin_norm
    for name in ["embedding"] + ["head"] * (not model.config.tied):
        assert 0.9 * CONFIG.init_std < np.std(fresh[name]) < CONFIG.init_std
        assert np.abs(fresh[name]).max() <= 3 * CONFIG.init_std
    if model.config.positions == "learned":
        assert np.abs(fresh["position"]).max() <= 3 * CONFIG.position_std


def test_tokens_see_only_earlier_ones(model, variables):
    row = tokens(1, 12)
    changed = row.at[0, 7].set((row[0, 7] + 1) % VOCAB)
    difference = np.abs(run(model, variables, row) - run(model, variables, changed)).max(-1)[0]
    assert not difference[:7].any()
    assert (difference[7:] > 1e-3).all()


def test_packed_samples_do_not_see_each_other(model, variables):
    first, second = tokens(1, 5, seed=3), tokens(1, 7, seed=4)
    packed = jnp.concatenate([first, second, jnp.zeros((1, 3), jnp.int32)], 1)
    positions = jnp.concatenate([jnp.arange(5), jnp.arange(7), jnp.zeros(3, jnp.int32)])[None]
    segments = jnp.asarray([[1] * 5 + [2] * 7 + [0] * 3])
    together = apply(model, variables, packed, positions, segments)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[:, :5], run(model, variables, first), atol=1e-5)
    np.testing.assert_allclose(together[:, 5:12], run(model, variables, second), atol=1e-5)


def test_order_matters_and_rotary_positions_are_relative(model, variables):
    row = tokens(1, 6)
    places, ones = jnp.asarray([[0, 1, 2, 3, 4, 5]]), jnp.ones_like(row)
    expected = run(model, variables, row)
    swapped = apply(model, variables, row, places.at[0, 1:3].set(jnp.asarray([2, 1])), ones)
    assert np.abs(swapped - expected)[0, 3:].max() > 1e-2
    moved = np.abs(apply(model, variables, row, places + 9, ones) - expected).max()
    assert moved < 1e-4 if model.config.positions == "rope" else moved > 1e-2


def test_rotation_by_hand():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 4)).astype(np.float32)
    turned = apply_rope(jnp.asarray(x), rotations(jnp.asarray([[0, 5, 7]]), 4))
    for place, position in enumerate((0, 5, 7)):
        for pair, frequency in enumerate((1.0, 10_000**-0.5)):
            number = (x[0, place, :, pair] + 1j * x[0, place, :, pair + 2]) * np.exp(
                1j * position * frequency
            )
            np.testing.assert_allclose(turned[0, place, :, pair], number.real, atol=1e-5)
            np.testing.assert_allclose(turned[0, place, :, pair + 2], number.imag, atol=1e-5)


@pytest.mark.parametrize("steps", [(1,) * 10, (1, 1, 3, 5), (10,)])
def test_decoding_equals_the_full_forward(model, variables, steps):
    lengths, samples = np.asarray([8, 6]), 2
    prompts, tails = tokens(2, 10), tokens(4, 10, seed=5)
    read = as_read(variables, "float32")
    hidden, prefix = apply(model, read, prompts, jnp.asarray(lengths), method="prefill")
    newest = jnp.take_along_axis(prompts, jnp.asarray(lengths)[:, None] - 1, axis=1)[:, 0]
    cache = start_cache(prefix, jnp.asarray(lengths), newest, samples, capacity=12)
    outputs, done = [], 0
    for count in steps:
        part = tails[:, done : done + count]
        out, cache = apply(model, read, part, cache, method="extend")
        outputs.append(out)
        done += count
    decoded = np.concatenate(outputs, 1)
    for row in range(4):
        prompt, length = row // samples, lengths[row // samples]
        whole = np.concatenate([prompts[prompt, :length], tails[row]])[None]
        expected = run(model, variables, whole)[0]
        np.testing.assert_allclose(hidden[prompt, :length], expected[:length], atol=1e-5)
        np.testing.assert_allclose(decoded[row], expected[length:], atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_tokens_are_written_where_they_are_on_cpus_as_tpus_write_them(count):
    """Those without room, of a row that is done, change nothing but its last entry."""
    old = jax.random.normal(jax.random.key(0), (4, 2, 5, 4))
    new = jax.random.normal(jax.random.key(1), (4, 2, count, 4))
    lengths = jnp.asarray([0, 1, 4, 5])
    there, here = (write(old, new, lengths) for write in (block._updated, block._scattered))
    np.testing.assert_array_equal(there[:3], here[:3])
    for row in (0, 1):
        place = int(lengths[row])
        np.testing.assert_array_equal(there[row, :, place : place + count], new[row])
    np.testing.assert_array_equal(there[2, :, 4], new[2, :, 0])
    np.testing.assert_array_equal(here[3], old[3])
    np.testing.assert_array_equal(there[3, :, :4], old[3, :, :4])


def test_many_tokens_are_one_write_on_tpus_too():
    """One by one they would make a program as long as the answers that `token_logprobs` reads."""

    def writes(count):
        old, new = jnp.zeros((2, 2, 64, 4)), jnp.ones((2, 2, count, 4))
        # All platforms' ways are in a jaxpr.
        return str(jax.make_jaxpr(block._written)(old, new, jnp.zeros(2, jnp.int32))).count(
            "scatter["
        )

    assert writes(64) < writes(4) < writes(8)


def test_dropout_by_the_definition():
    x = jnp.ones((3, 50, 40))
    dropped = np.asarray(dropout(x, 0.2, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.8)}
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)
    assert len({row.tobytes() for row in dropped}) == 3
    # A row's draws are its own, however many rows there are.
    np.testing.assert_array_equal(dropout(x[:2], 0.2, jax.random.key(0)), dropped[:2])
    np.testing.assert_array_equal(dropout(x, 0.2, None), x)


def test_dropout_falls_on_both_branches_of_every_layer():
    config = dataclasses.replace(CONFIG, dropout=0.5, layers=2)
    row = jnp.zeros((1, 6), jnp.int32)
    fresh = nn.meta.unbox(jax.jit(Decoder(config, VOCAB).init)(jax.random.key(0), row, row, row))
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(1), x.shape), fresh)
    states = jax.jit(
        lambda params, key: Decoder(config, VOCAB).apply(params, row, row, jnp.ones_like(row), key)
    )

    def run_with(part, key):
        """The states with only one sort of branch giving anything."""
        layers = dict(noise["params"]["layers"])
        silent = {"out": "feed_forward", "feed_forward": "out"}[part]
        layers[silent] = jax.tree.map(jnp.zeros_like, layers[silent])
        return states({"params": {**noise["params"], "layers": layers}}, key)

    for part in ("out", "feed_forward"):
        first, second = (run_with(part, jax.random.key(seed)) for seed in (0, 1))
        assert np.abs(first - second).max() > 1e-3
        assert np.abs(first - run_with(part, None)).max() > 1e-3


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_nothing(model, variables, remat):
    row = tokens(2, 9)

    def loss(parameters, config):
        return jnp.square(run(Decoder(config, VOCAB), parameters, row)).mean()

    expected = jax.grad(loss)(variables, model.config)
    actual = jax.grad(loss)(variables, dataclasses.replace(model.config, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


def test_parameters_are_counted(model, variables):
    count = sum(x.size for x in jax.tree.leaves(variables))
    assert count == model.config.parameters(VOCAB)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "head_width", "billions"),
    [(24, 1024, 16, 64, 0.373), (24, 1536, 16, 96, 0.786), (32, 4096, 32, 128, 6.73)],
)
def test_the_papers_sizes(layers, width, heads, head_width, billions):
    config = DecoderConfig(layers, width, heads, head_width, 4 * width)
    row = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: Decoder(config, 65536).init(jax.random.key(0), row, row, row))
    count = sum(x.size for x in jax.tree.leaves(nn.meta.unbox(shapes)))
    assert count == config.parameters(65536)
    assert count / 1e9 == pytest.approx(billions, rel=1e-3)
