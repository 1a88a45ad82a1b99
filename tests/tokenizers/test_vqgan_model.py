"""The network and its quantiser: shapes, locality, nearest codes, a codebook that follows."""

import dataclasses
import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import MeshConfig, VQGANConfig
from cm3jax.errors import UserError
from cm3jax.partition import batch_sharding, make_mesh, replicated, shardings
from cm3jax.tokenizers.quantiser import VectorQuantiser, draw_far_inputs
from cm3jax.tokenizers.vqgan_model import VQGAN, depth_to_space, space_to_depth

TAMING = VQGANConfig(
    image_size=8, channels=32, multipliers=(1, 2), blocks=1, codes=24, code_width=8
)
LOCAL = VQGANConfig(
    image_size=32,
    patch=8,
    channels=16,
    multipliers=(1,),
    blocks=1,
    attention=False,
    kernel=1,
    codes=24,
    code_width=8,
)


def pictures(config, count=3, seed=0):
    shape = (count, config.image_size, config.image_size, 3)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


@functools.cache
def variables(config):
    return nn.unbox(jax.jit(VQGAN(config).init)(jax.random.key(0), pictures(config, 1)))


@partial(jax.jit, static_argnames=("config", "method"))
def apply(config, weights, inputs, method=None):
    """Compiled, because hundreds of single operations would take seconds to dispatch."""
    return VQGAN(config).apply(weights, inputs, method=method)


@pytest.mark.parametrize(
    "config",
    [pytest.param(TAMING, marks=pytest.mark.slow, id="taming"), pytest.param(LOCAL, id="local")],
)
def test_encode_decode_and_call_agree(config):
    weights, pixels = variables(config), pictures(config)
    codes = apply(config, weights, pixels, "encode")
    assert codes.shape == (3, 16)
    assert codes.dtype == jnp.int32
    output = apply(config, weights, pixels)
    np.testing.assert_array_equal(output.codes, codes)
    decoded = apply(config, weights, codes, "decode")
    np.testing.assert_allclose(output.reconstruction, decoded, atol=1e-5)
    assert decoded.shape == pixels.shape


def test_taming_parameters():
    weights = nn.unbox(jax.eval_shape(VQGAN(TAMING).init, jax.random.key(0), pictures(TAMING)))
    weights = weights["params"]
    encoder, decoder = weights["encoder"], weights["decoder"]
    assert encoder["down_1_block_0"]["nin_shortcut"]["kernel"].shape == (32, 64)
    assert encoder["mid"]["attn_1"]["proj_out"]["kernel"].shape == (64, 64)
    # One block more per level on the way up.
    assert "down_0_block_1" not in encoder
    assert "up_0_block_1" in decoder


def test_attention_at_sides():
    config = dataclasses.replace(TAMING, attention_sides=(4,), latent_width=12)
    weights = nn.unbox(jax.eval_shape(VQGAN(config).init, jax.random.key(0), pictures(config)))
    encoder, decoder = weights["params"]["encoder"], weights["params"]["decoder"]
    attended = {name for part in (encoder, decoder) for name in part if "_attn_" in name}
    assert attended == {"down_1_attn_0", "up_1_attn_0", "up_1_attn_1"}
    assert encoder["quant_conv"]["kernel"].shape == (12, 8)
    assert decoder["post_quant_conv"]["kernel"].shape == (8, 12)
    with pytest.raises(UserError, match=r"levels' sides are \[4, 8\]"):
        dataclasses.replace(TAMING, attention_sides=(5,))
    with pytest.raises(UserError, match=r"vqgan\.kernel=1"):
        dataclasses.replace(LOCAL, attention_sides=(4,))


@pytest.mark.parametrize("at", [(0, 0), (1, 2), (3, 3)])
def test_local_codes_and_pixels_belong_to_one_patch(at):
    row, column = at
    weights, pixels = variables(LOCAL), pictures(LOCAL, 1)
    codes = apply(LOCAL, weights, pixels, "encode")
    # Several changes, because one may leave the code as it was.
    changed_codes = set()
    for seed in range(1, 6):
        cell = (0, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        changed = pixels.at[cell].set(pictures(LOCAL, 1, seed)[cell])
        differs = apply(LOCAL, weights, changed, "encode") != codes
        changed_codes |= set(np.flatnonzero(differs))
    assert changed_codes == {4 * row + column}
    other = codes.at[0, 4 * row + column].add(1) % LOCAL.codes
    pair = [apply(LOCAL, weights, c, "decode")[0] for c in (codes, other)]
    cells = np.asarray(space_to_depth(jnp.stack(pair), 8)).reshape(2, 16, -1)
    assert set(np.flatnonzero((cells[0] != cells[1]).any(-1))) == {4 * row + column}


def test_local_means_local():
    with pytest.raises(UserError, match=r"vqgan\.kernel=1"):
        VQGANConfig(patch=8, kernel=1, attention=True, multipliers=(1,))
    with pytest.raises(UserError, match=r"vqgan\.kernel=1"):
        VQGANConfig(patch=8, kernel=1, attention=False, multipliers=(1, 2))


def test_depth_to_space_undoes_space_to_depth():
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    deep = space_to_depth(x, 4)
    np.testing.assert_array_equal(deep[1, 0, 2].reshape(4, 4, 3), x[1, :4, 8:])
    np.testing.assert_array_equal(depth_to_space(deep, 4), x)


def quantiser(**delta):
    config = VQGANConfig(codes=6, code_width=2, **delta)

    class Model(nn.Module):
        def setup(self):
            self.quantiser = VectorQuantiser(config)

        def __call__(self, x):
            return self.quantiser(x)

    model = Model()
    state = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2))))
    return model, state["codebook"]["quantiser"]


@partial(jax.jit, static_argnums=0)
def follow(model, state, x, key=0):
    rngs = {"restart": jax.random.key(key)}
    output, new = model.apply(
        {"codebook": {"quantiser": state}}, x, mutable=["codebook"], rngs=rngs
    )
    return output, new["codebook"]["quantiser"]


def test_nearest_entry_and_straight_through_gradient():
    model, state = quantiser()
    x = jax.random.normal(jax.random.key(1), (40, 2))
    output = model.apply({"codebook": {"quantiser": state}}, x)
    distances = np.square(np.asarray(x)[:, None] - np.asarray(state["entries"])).sum(-1)
    np.testing.assert_array_equal(output.codes, distances.argmin(1))
    np.testing.assert_allclose(output.vectors, state["entries"][output.codes], atol=1e-6)
    np.testing.assert_allclose(output.commitment, distances.min(1).mean() / 2, rtol=1e-5)

    def total(x, part):
        return jnp.sum(getattr(model.apply({"codebook": {"quantiser": state}}, x), part))

    np.testing.assert_allclose(jax.grad(total)(x, "vectors"), np.ones((40, 2)))
    pull = 2 * (x - state["entries"][output.codes]) / x.size
    np.testing.assert_allclose(jax.grad(total)(x, "commitment"), pull, atol=1e-6)


def test_entries_are_moving_averages_of_their_inputs():
    model, state = quantiser(ema_decay=0.9, restart_below=1e-6)
    entries = jnp.arange(12.0).reshape(6, 2)
    state = {"entries": entries, "uses": jnp.full(6, 2.0)}
    x = jnp.array([[0.5, 0.5], [0.0, 1.5], [10.0, 12.0]])
    output, new = follow(model, state, x)
    np.testing.assert_array_equal(output.codes, [0, 0, 5])
    uses = 0.9 * 2 + 0.1 * np.array([2, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(new["uses"], uses, rtol=1e-6)
    first = (0.9 * 2 * entries[0] + 0.1 * (x[0] + x[1])) / uses[0]
    np.testing.assert_allclose(new["entries"][0], first, rtol=1e-6)
    np.testing.assert_allclose(new["entries"][1:5], entries[1:5], rtol=1e-6)


def test_unused_entries_restart_at_inputs_that_are_far():
    model, state = quantiser(ema_decay=0.5, restart_below=0.1)
    near, far = jnp.zeros((50, 2)), jnp.array([[9.0, 9.0]])
    entries = jnp.concatenate([jnp.zeros((1, 2)), jnp.full((5, 2), -9.0)])
    state = {"entries": entries, "uses": jnp.array([50.0, 0, 0, 0, 0, 0.15])}
    _, new = follow(model, state, jnp.concatenate([near, far]))
    np.testing.assert_allclose(new["entries"][0], 0.5 * far[0] / 50.5, rtol=1e-5)
    # One of 51 inputs has no entry near; the first to restart takes it.
    np.testing.assert_array_equal(new["entries"][1], far[0])
    # The last one dies as well: 0.15 decays below 0.1.
    np.testing.assert_allclose(new["uses"][1:], 0.3, rtol=1e-6)


def test_averages_and_restarts_see_the_batch_of_all_devices():
    model, state = quantiser(ema_decay=0.9, restart_below=0.05)
    x = jax.random.normal(jax.random.key(2), (64, 2))
    results = []
    for size in (1, 8):
        mesh = make_mesh(MeshConfig(data=size))
        rows = jax.device_put(x, batch_sharding(mesh))
        _, new = jax.jit(partial(follow, model))(jax.device_put(state, replicated(mesh)), rows)
        results.append(new)
    for name, one in results[0].items():
        np.testing.assert_allclose(one, results[1][name], rtol=1e-5)
    assert not np.allclose(results[0]["entries"], state["entries"])


def test_a_codebook_by_gradients_is_a_parameter_that_its_loss_pulls():
    config = VQGANConfig(codes=6, code_width=2, codebook="gradient")
    model = VectorQuantiser(config)
    x = jax.random.normal(jax.random.key(1), (40, 2))
    entries = nn.unbox(model.init(jax.random.key(0), x))["params"]["entries"]
    assert 0 < np.abs(entries).max() <= 1 / 6

    def run(entries, x):
        output, changed = model.apply({"params": {"entries": entries}}, x, mutable=["codebook"])
        assert not changed
        return output

    output = run(entries, x)
    np.testing.assert_allclose(output.following, output.commitment, rtol=1e-6)
    codes, counts = np.asarray(output.codes), np.zeros((6, 1))
    sums = np.zeros((6, 2))
    np.add.at(counts, codes, 1)
    np.add.at(sums, codes, np.asarray(x))
    pull = 2 * (counts * np.asarray(entries) - sums) / x.size
    by = {
        name: jax.grad(lambda *a, n=name: getattr(run(*a), n), (0, 1))
        for name in ("following", "commitment")
    }
    ours, encoders = by["following"](entries, x)
    np.testing.assert_allclose(ours, pull, atol=1e-6)
    assert not encoders.any()
    ours, encoders = by["commitment"](entries, x)
    assert not ours.any()
    assert encoders.any()


def test_an_immutable_codebook_stays():
    model, state = quantiser()
    output = model.apply({"codebook": {"quantiser": state}}, jnp.ones((3, 2)))
    assert output.codes.shape == (3,)


def test_far_inputs_are_drawn_without_repetition():
    inputs = jnp.arange(10.0)[:, None]
    distances = jnp.where(inputs[:, 0] < 7, 0.0, 1.0)
    drawn = draw_far_inputs(jax.random.key(0), inputs, distances, 3)
    assert sorted(drawn[:, 0].tolist()) == [7, 8, 9]
    more = draw_far_inputs(jax.random.key(0), inputs, distances, 12)
    assert set(more[:10, 0].tolist()) == set(range(10))


def test_every_parameter_and_the_codebook_can_be_sharded():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(VQGAN(TAMING).init, jax.random.key(0), pictures(TAMING, 1))
    cut = shardings(mesh, boxed)
    assert cut["codebook"]["quantiser"]["entries"].spec == jax.P("fsdp", None)
