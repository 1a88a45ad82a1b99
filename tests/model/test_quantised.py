"""Arrays of few bits: what they stand for, and products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import partition
from cm3jax.config import DecoderConfig
from cm3jax.model.cache import KeyValues, empty_entries
from cm3jax.model.quantised import (
    GROUP,
    FewBits,
    product,
    quantise,
    quantise_matrix,
    stored_bytes,
)

KINDS = ("int8", "int4", "fp8")


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def path(name):
    return tuple(map(jax.tree_util.DictKey, ("params", "layers", name, "kernel")))


def test_values_are_the_nearest_multiples_of_their_scale():
    kernel = np.float32([[1.27, 0.004], [-0.5, 0.3], [0.014, -2.54]])
    found = quantise(kernel, (0,), "int8")
    np.testing.assert_allclose(found.scales, [[0.01, 0.02]], rtol=2**-16)
    assert found.values.tolist() == [[127, 0], [-50, 15], [1, -127]]


@pytest.mark.parametrize("name", ["query", "out", "down"])
@pytest.mark.parametrize(("kind", "largest"), [("int8", 127), ("int4", 7), ("fp8", 448)])
def test_no_entry_is_further_off_than_its_type_allows(kind, largest, name):
    kernel = matrix(*{"query": (64, 4, 16), "out": (4, 16, 64), "down": (96, 8)}[name])
    contracted = {"query": (0,), "out": (0, 1), "down": (0,)}[name]
    found = quantise(kernel, contracted, kind)
    scales = np.asarray(found.scales)
    for axis, (size, few) in enumerate(zip(kernel.shape, scales.shape, strict=True)):
        scales = np.repeat(scales, size // few, axis)
    off = np.abs(np.asarray(found.widened("float32")) - kernel)
    # An e4m3 number has three bits after the first, and smallest steps of 2**-9.
    step = np.maximum(np.abs(kernel) / 8, scales * 2**-9) if kind == "fp8" else scales
    assert np.all(off <= step * 0.501)
    assert np.abs(np.asarray(found.values, np.float32)).max() == largest
    groups = {"query": 64 // GROUP, "out": 4, "down": 96 // GROUP}[name] if kind == "int4" else 1
    assert found.scales.size == groups * kernel.size // np.prod(
        [kernel.shape[a] for a in contracted]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["value", "out", "up"])
def test_what_was_widened_is_quantised_to_the_same_bits(name, kind):
    kernel = matrix(*{"value": (3, 64, 4, 16), "out": (3, 4, 16, 64), "up": (3, 64, 96)}[name])
    contracted = {"value": (-3,), "out": (-3, -2), "up": (-2,)}[name]
    once = quantise(kernel, contracted, kind)
    again = quantise(once.widened("float32"), contracted, kind)
    assert np.asarray(again.values).tobytes() == np.asarray(once.values).tobytes()
    assert np.array_equal(again.scales, once.scales)


def test_cpus_multiply_int8_by_int8():
    """To the last bit what integers give, one row as well as many."""
    rows, kernel = matrix(5, 64), matrix(64, 4, 24, seed=1)
    found = quantise(kernel, (0,), "int8").as_matrix(1)
    small = np.float32(np.abs(rows).max(1, keepdims=True) / 127)
    whole = np.round(rows / small).astype(np.int32)
    expected = (whole @ np.asarray(found.values, np.int32)).astype(np.float32)
    expected = expected * small * np.asarray(found.scales)
    np.testing.assert_allclose(product(jnp.asarray(rows), found), expected, rtol=2e-5)
    np.testing.assert_allclose(product(jnp.asarray(rows[:1]), found), expected[:1], rtol=2e-5)
    exact = rows @ kernel.reshape(64, -1)
    assert np.linalg.norm(expected - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_others_widen_the_matrix_inside_the_product(kind, monkeypatch):
    monkeypatch.setattr(partition, "platform", lambda: "gpu")
    rows, kernel = matrix(5, 64), matrix(64, 24, seed=1)
    kept = quantise_matrix(path("up"), kernel, kind, "float32")
    assert isinstance(kept, FewBits)
    expected = rows @ np.asarray(kept.widened("float32"))
    np.testing.assert_allclose(product(jnp.asarray(rows), kept), expected, rtol=1e-5, atol=1e-5)


def test_only_int8_stays_in_a_cpus_memory():
    kernel = matrix(64, 24)
    assert isinstance(quantise_matrix(path("up"), kernel, "int8", "float32"), FewBits)
    for kind in ("int4", "fp8"):
        expected = quantise(kernel, (0,), kind).widened("float32")
        found = quantise_matrix(path("up"), kernel, kind, "float32")
        np.testing.assert_array_equal(found, expected)


def test_two_numbers_of_four_bits_share_a_byte():
    found = quantise(matrix(64, 24), (0,), "int4")
    assert stored_bytes(found.values) == 64 * 24 // 2
    assert stored_bytes(found.scales) == 2 * 24 * 4


def test_stamps_name_what_is_kept_in_few_bits():
    assert DecoderConfig().few_bits == ""
    assert DecoderConfig(cache="int8").few_bits == "int8 cache"
    assert DecoderConfig(weights="int4", cache="int8").few_bits == "int4 weights, int8 cache"


def test_keys_and_values_are_kept_as_the_cache_has_them():
    config = DecoderConfig(heads=4, head_width=16, dtype="float32", cache="int8")
    old = KeyValues(*(empty_entries((2, 4, 6), config) for _ in range(2)))
    new = KeyValues(*(jnp.asarray(matrix(2, 4, 6, 16, seed=seed)) for seed in range(2)))
    kept = new.kept_like(old)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(old), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    np.testing.assert_allclose(kept.widened("float32").values, new.values, atol=0.02)
    plain = KeyValues(new.keys, new.values)
    assert new.kept_like(plain).keys is new.keys
