"""config.json of transformers' Chameleon <-> our config of the decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from cm3jax.config import DecoderConfig
from cm3jax.errors import UserError
from cm3jax.interop import fields
from cm3jax.io.experiment_json import build
from cm3jax.sequence.vocab import Vocab

_HARMLESS = {
    **fields.TRANSFORMERS,
    "model_parallel_size": "how it was trained: transformers reads it and does nothing with it",
    "pad_token_id": "vocabulary_map names what pads",
    "bos_token_id": "vocabulary_map names what begins",
    "eos_token_id": "vocabulary_map names what ends",
    "image_token_id": "vocabulary_map names it, and no input of the network holds it",
}
_ROPE = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
_COMPUTED: dict[str, Literal["float32", "bfloat16"]] = {
    "float32": "float32",
    "float16": "float32",
    "bfloat16": "bfloat16",
}
"""Types of weights, and ours that holds their values and computes as exactly or more so."""


@dataclasses.dataclass(frozen=True)
class Foreign:
    """The fields of a config.json that decide the network, with the defaults of transformers."""

    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    partial_rotary_factor: float | None = None
    attention_bias: bool | None = False
    mlp_bias: bool | None = False
    swin_norm: bool | None = False
    pruned_heads: dict | None = None
    vq_config: dict | None = None
    vocabulary_map: dict | None = None
    dtype: str | None = None
    torch_dtype: str | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any], what: str) -> "Foreign":
        """The fields of a config.json; `UserError` for another model's and for unknown keys."""
        kind = {"model_type": config.get("model_type")}
        fields.require_values(kind, {"model_type": ("chameleon",)}, what)
        names = [field.name for field in dataclasses.fields(cls)]
        return build(cls, fields.select(config, names, _HARMLESS, what), what)

    def decoder(self, what: str, stored: str) -> DecoderConfig:
        """Our config; `stored` is the type of the weights, for configs that don't say how to
        compute. `UserError` for what ours cannot be."""
        found = dataclasses.asdict(self)
        usual: dict[str, tuple] = {
            "hidden_act": ("silu", "swish"),  # two names of one function
            "rms_norm_eps": (1e-5,),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
            "pruned_heads": ({}, None),
            "partial_rotary_factor": (1.0, None),
        }
        fields.require_values(found, usual, what)
        fields.require_sizes(found, what)
        self._require_rope(what)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{what}: num_attention_heads does not divide hidden_size; correct it.")
        width = self.hidden_size // self.num_attention_heads
        fields.require_values({"head_dim": self.head_dim or width}, {"head_dim": (width,)}, what)
        few = self.num_key_value_heads or self.num_attention_heads
        dtype = self.dtype or self.torch_dtype or stored
        fields.require_values({"dtype": dtype}, {"dtype": tuple(_COMPUTED)}, what)
        return DecoderConfig(
            layers=self.num_hidden_layers,
            width=self.hidden_size,
            heads=self.num_attention_heads,
            head_width=width,
            ffn=self.intermediate_size,
            kv_heads=0 if few == self.num_attention_heads else few,
            activation="swiglu",
            norm="rms",
            swin_norm=bool(self.swin_norm),
            tied=self.tie_word_embeddings,
            context=self.max_position_embeddings,
            dtype=_COMPUTED[dtype],
            positions="rope",
            qk_norm=True,
        )

    def _require_rope(self, what: str) -> None:
        """Plain rotary positions, under transformers' three ways to say so: `rope_theta` beside
        `rope_scaling` with `rope_type`, or `type` in older versions, and `rope_parameters`."""
        name = "rope_scaling" if self.rope_scaling else "rope_parameters"
        where = f"{what}: {name}"
        rope = fields.select(self.rope_scaling or self.rope_parameters or {}, _ROPE, {}, where)
        rope.setdefault("rope_theta", self.rope_theta or 10000)
        rope.setdefault("rope_type", rope.get("type", "default"))
        usual = {
            "rope_theta": (10000,),
            "rope_type": ("default",),
            "type": ("default",),
            "partial_rotary_factor": (1.0, None),
        }
        fields.require_values(rope, usual, where)


def write_chameleon_config(
    model: DecoderConfig, vocab: Vocab, known: dict[str, Any], vq: dict[str, Any]
) -> dict[str, Any]:
    """The config.json of an export: what was imported, and what our config says of the network.

    `known` is the imported config, `vq` the part of the image tokenizer.
    """
    ours = {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": vocab.size,
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.groups,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": model.tied,
        "swin_norm": model.swin_norm,
        "vq_config": {**(known.get("vq_config") or {}), **vq},
    }
    defaults = {"pad_token_id": vocab.pad, "bos_token_id": vocab.eos, "eos_token_id": vocab.eos}
    return {**defaults, **known, **ours}
