"""The decoder in Chameleon's shape against transformers (`reference/make_chameleon.py`)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import DecoderConfig
from cm3jax.decode.params import as_read
from cm3jax.model.cache import start_cache
from cm3jax.model.decoder import Decoder
from cm3jax.testing import decoder_variables

CONFIG = DecoderConfig(
    layers=3,
    width=32,
    heads=4,
    head_width=8,
    ffn=48,
    context=64,
    dtype="float32",
    positions="rope",
    qk_norm=True,
    norm="rms",
    activation="swiglu",
    tied=False,
)
VARIANTS = {
    "chameleon-7b": CONFIG,
    "chameleon-34b": DecoderConfig(**vars(CONFIG) | {"kv_heads": 2, "swin_norm": True}),
}
PARTS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@pytest.fixture(scope="module", params=VARIANTS)
def case(request):
    """The model with the stored parameters, and the stored arrays."""
    config = VARIANTS[request.param]
    with np.load(Path(__file__).with_name("reference") / f"{request.param}.npz") as file:
        stored = dict(file)
    model = Decoder(config, len(stored["lm_head.weight"]))
    shapes = decoder_variables(model)["params"]

    def fill(path, leaf):
        *_, part, kind = (key.key for key in path)
        name = "bias" if kind == "bias" else "weight"
        layers = [stored[f"model.layers.{i}.{PARTS[part]}.{name}"] for i in range(config.layers)]
        if kind == "kernel":  # ours maps from the left
            layers = [layer.T for layer in layers]
        return jnp.asarray(np.stack(layers).reshape(leaf.shape))

    params = {
        "embedding": jnp.asarray(stored["model.embed_tokens.weight"]),
        "head": jnp.asarray(stored["lm_head.weight"]),
        "final_norm": {"scale": jnp.asarray(stored["model.norm.weight"])},
        "layers": jax.tree.map_with_path(fill, shapes["layers"]),
    }
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    keys = {key for key in stored if key not in ("tokens", "hidden", "logits")}
    assert len(keys) == 3 + config.layers * len(jax.tree.leaves(shapes["layers"]))
    return model, {"params": params}, stored


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, variables, *arguments, method=None):
    """Compiled, because hundreds of single operations would take seconds to dispatch."""
    return model.apply(variables, *arguments, method=method)


def test_states_and_scores_are_those_of_transformers(case):
    model, variables, stored = case
    tokens = jnp.asarray(stored["tokens"])
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = apply(model, variables, tokens, places, jnp.ones_like(tokens))
    np.testing.assert_allclose(hidden, stored["hidden"], atol=1e-4, rtol=1e-4)
    logits = apply(model, variables, hidden, method="logits")
    np.testing.assert_allclose(logits, stored["logits"], atol=1e-4, rtol=1e-4)


def test_decoding_with_the_cache_gives_them_too(case):
    model, variables, stored = case
    tokens = jnp.asarray(stored["tokens"])
    lengths = jnp.full(len(tokens), 5)
    variables = as_read(variables, "float32")
    _, prefix = apply(model, variables, tokens[:, :5], lengths, method="prefill")
    assert prefix[0].keys.shape[1] == model.config.groups
    cache = start_cache(prefix, lengths, tokens[:, 4], 1, capacity=tokens.shape[1] - 5)
    hidden, _ = apply(model, variables, tokens[:, 5:], cache, method="extend")
    np.testing.assert_allclose(hidden, stored["hidden"][:, 5:], atol=1e-4, rtol=1e-4)
