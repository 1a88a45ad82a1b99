"""The same architecture in transformers and torch, with our weights, for the bench."""

import importlib.util
from typing import Any

import jax
import numpy as np

from cm3jax.config import Experiment


def missing() -> str:
    """Why there is nothing to compare with; empty if there is."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return ""


_NAMES = {
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
"""Our names of a layer's parts and those of transformers."""


def state_dict(weights: Any, width: int) -> dict[str, np.ndarray]:
    """Our parameters under the names and in the shapes of transformers' Chameleon."""
    out = {
        "model.embed_tokens.weight": weights["embedding"],
        "lm_head.weight": weights["head"],
        "model.norm.weight": weights["final_norm"]["scale"],
    }
    for path, stacked in jax.tree.leaves_with_path(weights["layers"]):
        *_, part, kind = (key.key for key in path)
        for index, leaf in enumerate(stacked):
            if kind == "kernel":  # ours maps from the left, over several axes
                shape = (width, -1) if part not in ("out", "down") else (-1, width)
                leaf = np.ascontiguousarray(leaf.reshape(shape).T)
            name = "bias" if kind == "bias" else "weight"
            out[f"model.layers.{index}.{_NAMES[part]}.{name}"] = leaf
    return out


def chameleon(experiment: Experiment, weights: Any) -> Any:
    """A `ChameleonForConditionalGeneration` with our weights, on the accelerator that jax uses."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    model = experiment.model
    config = ChameleonConfig(
        vocab_size=int(weights["head"].shape[0]),
        hidden_size=model.width,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=model.context,
        vocabulary_map={"<image>": 3, "IMGIMGAZ": 4},
        # The smallest image tokenizer there is; nothing here uses it.
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1],
            "embed_dim": 4,
            "latent_channels": 4,
            "num_embeddings": 2,
            "num_res_blocks": 1,
            "resolution": 8,
        },
    )
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    network: Any = ChameleonForConditionalGeneration(config)
    arrays = {name: torch.from_numpy(a) for name, a in state_dict(weights, model.width).items()}
    faults = network.load_state_dict(arrays, strict=False)
    left = [name for name in faults.missing_keys if "vqmodel" not in name]
    if left or faults.unexpected_keys:
        raise ValueError(f"weights differ: {left} {faults.unexpected_keys}")
    return network.to(device)
