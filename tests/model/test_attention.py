"""The backends of a row's attention agree; splash is interpreted here, both kernels are lowered."""

import contextlib
import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import partition
from cm3jax.config import DataConfig, DecoderConfig, MeshConfig, TrainConfig
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.memory import compiled_bytes, planned
from cm3jax.model.attention import row_attention
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.model.kernels import kernel_for
from cm3jax.testing import decoder_variables
from cm3jax.train import train
from tests.tiny import VOCAB, experiment, learner

LENGTH = 384
"""Three blocks of splash attention."""
# Segments that end within a block, with one, and in padding.
PACKED = jnp.asarray([[1] * 100 + [2] * 200 + [0] * 84, [1] * 256 + [2] * 128])
STREAM = jnp.asarray([[1] * LENGTH, [1] * 300 + [0] * 84])
MODEL = DecoderConfig(
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_width=16,
    ffn=64,
    context=128,
    dtype="float32",
)


def heads(count, seed=0, dtype="float32", length=LENGTH):
    """Queries of 4 heads and `count` more arrays of 2: keys, values."""
    keys = jax.random.split(jax.random.key(seed), 1 + count)
    shapes = [(2, length, 4, 32)] + [(2, length, 2, 32)] * count
    return [jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True)]


def attended(backend, segments, there):
    """What is attended and the gradients of queries, keys and values, where `there` is true."""

    @jax.jit
    def run(queries, keys, values, slopes):
        function = row_attention(segments, backend)
        out, transpose = jax.vjp(function, queries, keys, values)
        return out * there[..., None, None], *transpose(slopes * there[..., None, None])

    return run(*heads(2), heads(0, seed=1)[0])


def assert_near(actual, expected, tolerance=1e-5):
    for left, right in zip(actual, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * np.abs(right).max())


@pytest.mark.slow  # Pallas's interpreter takes seconds
def test_splash_is_the_attention_of_packed_rows_padding_and_shared_heads_included():
    everywhere = jnp.ones_like(PACKED)
    assert_near(attended("splash", PACKED, everywhere), attended("xla", PACKED, everywhere))


def test_triton_is_the_attention_of_packed_rows_padding_and_shared_heads_included():
    everywhere = jnp.ones_like(PACKED)
    assert_near(attended("triton", PACKED, everywhere), attended("xla", PACKED, everywhere))


@pytest.fixture
def cudnn_on_cpu(monkeypatch):
    """Where cuDNN would run, jax's own operations run by the same definition."""
    attention = jax.nn.dot_product_attention

    def by_operations(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return attention(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_operations)


@pytest.mark.usefixtures("cudnn_on_cpu")
def test_cudnn_never_looks_at_the_segments_which_stream_rows_do_not_need():
    there = STREAM > 0
    assert_near(attended("cudnn", STREAM, there), attended("xla", STREAM, there))
    assert np.abs(attended("cudnn", PACKED, there)[0] - attended("xla", PACKED, there)[0]).max() > 1


def slopes(backend, *arrays):
    """Gradients through attention, to be lowered for hardware that is not here."""
    segments = jnp.ones(arrays[0].shape[:2], jnp.int32)
    loss = lambda *arrays: row_attention(segments, backend)(*arrays).astype("float32").sum()  # noqa: E731
    return jax.grad(loss, (0, 1, 2))(*arrays)


def lowered(platform, backend):
    arrays = heads(2, dtype="bfloat16", length=1024)
    traced = jax.jit(partial(slopes, backend)).trace(*arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_operations_hold_the_scores_of_a_block_of_tokens_at_once():
    text = lowered("tpu", "xla")
    assert "128x1024" in text
    assert "1024x1024" not in text


def test_splash_is_lowered_for_tpus_without_an_array_of_scores(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    text = lowered("tpu", "splash")
    assert text.count("@tpu_custom_call") == 3  # forward, and backward to queries and to keys
    assert "128x1024" not in text
    assert "1024x1024" not in text


def test_cudnn_is_lowered_for_gpus_without_an_array_of_all_scores(monkeypatch):
    # Before anything else jax asks the library for its version, and here there is none.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 1e5)
    text = lowered("cuda", "cudnn")
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert text.count(r"mask_type\22: \22CAUSAL\22") == 2
    assert r"fmha_scale\22: 0.17677669" in text  # 32**-0.5
    assert "1024x1024" not in text


def test_triton_is_lowered_for_gpus_without_an_array_of_all_scores(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with contextlib.suppress(ImportError):  # of itself jax 0.10 takes an H100, and 0.12 refuses
        from jax._src.pallas.triton import gpu_info

        h100 = gpu_info.get_gpu_info_from_version(gpu_info.GpuVersion.H100)
        monkeypatch.setattr(gpu_info, "get_gpu_info", lambda: h100)
    text = lowered("cuda", "triton")
    assert text.count("@__gpu$xla.gpu.triton(") == 3  # forward, sums, backward
    assert "1024x1024" not in text


TINY_ROWS = {"dtype": "bfloat16", "head_width": 64, "context": 256}


@pytest.mark.parametrize(
    ("platform", "one_segment", "fields", "kernel"),
    [
        ("cpu", False, {}, "xla"),
        ("tpu", False, {}, "splash"),
        ("tpu", True, {"dtype": "float32"}, "splash"),
        ("tpu", False, {"context": 200}, "xla"),
        ("gpu", True, {}, "cudnn"),
        ("gpu", True, {"context": 200}, "cudnn"),
        ("gpu", False, {}, "triton"),
        ("gpu", False, {"context": 200}, "xla"),
        ("gpu", True, {"dtype": "float32"}, "xla"),
        ("gpu", False, {"head_width": 192}, "xla"),
        ("gpu", False, {"attention": "xla"}, "xla"),
    ],
)
def test_auto_is_the_kernel_of_the_hardware(monkeypatch, platform, one_segment, fields, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    model = dataclasses.replace(MODEL, **TINY_ROWS | fields)
    assert kernel_for(model, model.context, one_segment) == kernel


@pytest.mark.parametrize(
    ("generation", "kernels"),
    [
        ("7.5", ("xla", "xla")),
        ("8.0", ("triton", "cudnn")),
        ("10.0", ("triton", "cudnn")),
        ("gfx942", ("xla", "xla")),
    ],
)
def test_auto_leaves_gpus_without_the_kernels_to_plain_operations(monkeypatch, generation, kernels):
    """Those before Ampere, and other makers'."""
    gpu = types.SimpleNamespace(compute_capability=generation)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    model = dataclasses.replace(MODEL, **TINY_ROWS)
    assert tuple(kernel_for(model, 256, one_segment) for one_segment in (False, True)) == kernels


def test_auto_goes_by_the_mesh_that_is_set_and_shares_heads_equally():
    model = dataclasses.replace(MODEL, **TINY_ROWS)
    device = jax.sharding.AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
    kernels = []
    for tensor in (2, 4):  # 2 heads of keys and values
        mesh = jax.sharding.AbstractMesh(
            (1, 1, tensor), ("data", "fsdp", "tensor"), abstract_device=device
        )
        with jax.sharding.use_abstract_mesh(mesh):
            kernels.append(kernel_for(model, 256, one_segment=False))
    assert kernels == ["splash", "xla"]


def test_the_start_says_what_attends(tmp_path, capsys):
    train(learner(experiment(tmp_path, train=TrainConfig(steps=1, validate_every=0))))
    assert "rows attend by plain operations" in capsys.readouterr().out


def loss_and_slopes(model, segments, sizes=(1, 1, 1)):
    """Of the tiny decoder on rows with these segments, on a mesh of these sizes."""
    config = experiment("", model=model, mesh=MeshConfig(*sizes), data=DataConfig(batch=4))
    tiny, mesh = learner(config), partition.make_mesh(config.mesh)
    batch = next(tiny.streams["train"].batches(Position())).data
    weights = batch.weights * (segments > 0)
    batch = dataclasses.replace(batch, segments=segments, weights=weights)
    variables = decoder_variables(tiny.model)
    placed = partition.shardings(mesh, jax.eval_shape(tiny.init, jax.random.key(0)))["params"]

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        return tiny.loss(params, {}, batch, jax.random.key(0), jnp.int32(0)).loss

    with jax.set_mesh(mesh):
        params = jax.device_put(variables["params"], placed)
        value, gradient = loss(params, jax.device_put(batch, partition.batch_sharding(mesh)))
    return value, *jax.tree.leaves(gradient)


ROWS = np.asarray([[1] * 30 + [2] * 60 + [0] * 38, [1] * 128] * 2, np.int32)


@pytest.mark.slow
def test_a_decoder_learns_the_same_by_splash_on_a_mesh():
    splash = dataclasses.replace(MODEL, attention="splash", remat="full")
    actual = loss_and_slopes(splash, ROWS, sizes=(2, 2, 2))
    assert_near(actual, loss_and_slopes(MODEL, ROWS))


def test_only_the_picture_of_an_encoder_decoder_attends_by_splash():
    def kernels(config):
        model = EncoderDecoder(config, 1, VOCAB.size, 6, LENGTH)
        texts, row = jnp.zeros((2, 6), jnp.int32), jnp.zeros((2, LENGTH), jnp.int32)
        variables = jax.eval_shape(model.init, jax.random.key(0), texts, texts == 0, row)
        return str(jax.make_jaxpr(model.apply)(variables, texts, texts == 0, row)).count("= pallas")

    assert kernels(MODEL) == 0
    assert kernels(dataclasses.replace(MODEL, attention="splash")) == 1


REFUSED = {
    r"model\.attention=cudnn cannot compute in model\.dtype=float32; use bfloat16": {
        "attention": "cudnn"
    },
    r"cudnn cannot have model\.head_width=192; make it a multiple of 8 up to 128": {
        "attention": "cudnn",
        "dtype": "bfloat16",
        "head_width": 192,
    },
    r"cudnn cannot keep the samples of data\.rows=whole apart; use data\.rows=stream": {
        "attention": "cudnn",
        "dtype": "bfloat16",
    },
    r"splash works on blocks of 128 tokens, which rows of 200 do not fill; change model\.context": {
        "attention": "splash",
        "context": 200,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_kernel_cannot_do_is_refused_with_the_config(message):
    with pytest.raises(UserError, match=message):
        experiment("", model=dataclasses.replace(MODEL, **REFUSED[message]))


def test_an_encoder_decoders_rows_are_its_pictures():
    model = dataclasses.replace(MODEL, attention="splash")
    with pytest.raises(UserError, match=r"rows of 4 do not fill; change vocab\.grid"):
        experiment("", learner="parti", model=model)


def test_a_kernel_for_other_hardware_or_heads_is_refused_before_anything_is_compiled(tmp_path):
    cudnn = dataclasses.replace(MODEL, attention="cudnn", dtype="bfloat16")
    config = experiment(tmp_path, model=cudnn, data=DataConfig(rows="stream"))
    with pytest.raises(UserError, match="cudnn is for a gpu, but jax found only cpu"):
        train(learner(config))
    with pytest.raises(UserError, match="cudnn is for a gpu, but jax found only cpu"):
        compiled_bytes(planned(config), partition.make_mesh(config.mesh))
    splash = dataclasses.replace(MODEL, attention="splash")
    with pytest.raises(UserError, match=r"cannot share 2 heads .* among mesh\.tensor=4 devices"):
        train(learner(experiment(tmp_path, model=splash, mesh=MeshConfig(1, 1, 4))))
