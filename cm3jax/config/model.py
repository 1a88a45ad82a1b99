"""The Transformers: the decoder, and Parti's encoder-decoder."""

import dataclasses
import math
from typing import Literal

from cm3jax.config.checks import require, require_not_negative, require_range

WeightType = Literal["", "int8", "int4", "fp8"]
CacheType = Literal["", "int8"]
"""What matrices, keys and values are kept in for generation; empty is the activations' type."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The autoregressive decoder (CM3Leon's section 2.3).

    By default it is pre-LN and has no biases, no dropout and no affine norms, as in the paper.

    The fields marked "Chameleon" turn it into the decoder of arXiv 2405.09818.
    """

    layers: int = 24
    """Number of layers (N)."""
    width: int = 1024
    """Model width (D)."""
    heads: int = 16
    """Attention heads (H)."""
    head_width: int = 64
    """Width of one head (A)."""
    ffn: int = 4096
    """Width of the feed-forward layer (F)."""
    kv_heads: int = 0
    """Heads of keys and values (K), each shared by H / K query heads (Chameleon-34B: 8); 0 gives
    every query head its own."""
    activation: Literal["relu", "swiglu"] = "relu"
    """The feed-forward layer's activation: ReLU, or SwiGLU: SiLU of one projection times another
    (Chameleon)."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer norm without gain or bias (CM3Leon), or RMS norm with a learned gain (Chameleon)."""
    swin_norm: bool = False
    """Normalise the outputs of attention and feed-forward layer instead of their inputs
    (Chameleon-34B)."""
    tied: bool = True
    """Compute logits with the embedding table; false gives the head a table of its own
    (Chameleon)."""
    dropout: float = 0.0
    """Share of the outputs of attention and feed-forward layer that training drops (Chameleon-7B:
    0.1); validation and generation drop nothing."""
    context: int = 4096
    """Longest row in tokens, and rows of the learned position table."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations; parameters, norms, softmax and logits are float32."""
    init_std: float = 0.006
    """Standard deviation of the truncated normal initialiser (cut at 3)."""
    positions: Literal["learned", "rope"] = "learned"
    """A learned table of positions (OPT, CM3Leon) or rotary ones (Chameleon)."""
    position_std: float = 0.0002
    """`init_std` for the table of learned positions."""
    token_shift: bool = False
    """Add to each id's embedding a learned projection of the one before it (the token shift of
    RWKV, arXiv 2305.13048): a single layer can then find where the same ids stood and copy what
    followed them (an induction head, arXiv 2209.11895), which two must learn together otherwise."""
    qk_norm: bool = False
    """Normalise queries and keys over each head, with learned gain and bias (Chameleon)."""
    lora_rank: int = 0
    """Rank of the corrections added to every matrix of the layers (LoRA, arXiv 2106.09685); only
    they are trained, unless optim.trained names more. 0 adds none."""
    lora_alpha: float = 16.0
    """Corrections are multiplied by lora_alpha / lora_rank."""
    unroll: int = 1
    """Layers per iteration of the scan over layers: more take longer to compile and run faster on
    CPUs."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: only norms, gates and attention weights (`none`),
    everything (`full`), or all but matrix products (`dots`)."""
    attention: Literal["auto", "xla", "cudnn", "splash", "triton"] = "auto"
    """How training rows attend. `xla`: plain operations for any hardware, which hold the scores of
    an eighth of a row's tokens at once. Kernels that hold fewer: `cudnn` for GPUs, where a row is
    one segment (`data.rows=stream`), `triton` for GPUs, where rows are packed, and `splash` for
    TPUs. `auto` takes the hardware's kernel as far as rows, heads and types fit it; a line at start
    says which. Generation always uses `xla`."""
    quantised: Literal["", "int8", "fp8"] = ""
    """Type of the layers' matrix products in training, forward and backward, by qwix (the extra
    `quantised`). Empty: they are computed in dtype, as validation always does."""
    weights: WeightType = ""
    """Type that the layers' matrices are kept in for generation, by qwix (the extra `quantised`):
    int8 and fp8 with a scale per output, int4 with one per output and 32 inputs. Empty: dtype.
    Training keeps float32."""
    cache: CacheType = ""
    """Type that keys and values are kept in for generation, with a scale per token and head, by
    qwix. Empty: dtype."""

    def __post_init__(self):
        sizes = ("layers", "width", "heads", "head_width", "ffn", "context", "unroll")
        require_range(self, "model", sizes)
        require(
            self.kv_heads >= 0 and self.heads % self.groups == 0,
            f"model.heads={self.heads} cannot share model.kv_heads={self.kv_heads} equally; make "
            "the first a multiple of the second.",
        )
        require(
            0 <= self.dropout < 1,
            f"model.dropout={self.dropout} is a share of what is dropped; give 0 or more, below 1.",
        )
        require_range(self, "model", ["lora_rank"], least=0)
        require_not_negative(self, "model", ("init_std", "position_std"))
        require(
            0 < self.lora_alpha < math.inf,
            f"model.lora_alpha={self.lora_alpha} multiplies corrections; give a positive number.",
        )
        if self.attention == "cudnn":
            require(
                self.dtype == "bfloat16",
                f"model.attention=cudnn cannot compute in model.dtype={self.dtype}; use bfloat16, "
                "or model.attention=xla.",
            )
            require(
                self.head_width % 8 == 0 and self.head_width <= 128,
                f"model.attention=cudnn cannot have model.head_width={self.head_width}; make it a "
                "multiple of 8 up to 128, or use model.attention=xla.",
            )

    @property
    def groups(self) -> int:
        """Heads of keys and values (K)."""
        return self.kv_heads or self.heads

    @property
    def lora(self) -> tuple[int, float]:
        """Rank of the corrections (0: none), and what multiplies them."""
        return self.lora_rank, self.lora_alpha / max(self.lora_rank, 1)

    @property
    def few_bits(self) -> str:
        """What generation keeps in few bits, in words; empty where nothing is."""
        kinds = {"weights": self.weights, "cache": self.cache}
        return ", ".join(f"{kind} {name}" for name, kind in kinds.items() if kind)

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of one layer."""
        attention = 2 * (self.heads + self.groups) * self.head_width
        return (attention + (3 if self.activation == "swiglu" else 2) * self.ffn) * self.width

    def parameters(self, vocab_size: int) -> int:
        """Number of parameters of a `Decoder` over `vocab_size` ids."""
        qk_norms = 2 * (self.heads + self.groups) * self.head_width if self.qk_norm else 0
        gain = self.width if self.norm == "rms" else 0
        query_out = 2 * (self.width + self.heads * self.head_width)
        key_value = 2 * (self.width + self.groups * self.head_width)
        feed = (3 if self.activation == "swiglu" else 2) * (self.width + self.ffn)
        lora = self.lora_rank * (query_out + key_value + feed)
        layer = self.layer_weights + qk_norms + 2 * gain + lora
        tables = (1 if self.tied else 2) * vocab_size
        tables += self.context if self.positions == "learned" else 0
        tables += self.width if self.token_shift else 0
        return self.layers * layer + gain + tables * self.width


@dataclasses.dataclass(frozen=True)
class PartiConfig:
    """What the encoder-decoder (arXiv 2206.10789) needs in addition to `model`, its decoder.

    The encoder's layers have the decoder's widths; `model.context` is not used.
    """

    encoder_layers: int = 16
    """Layers of the encoder."""
    text_tokens: int = 128
    """Longest caption in tokens, its end included; longer ones are cut."""
    drop_captions: float = 0.1
    """Share of training pairs without their caption, for classifier-free guidance."""

    def __post_init__(self):
        require(
            0 <= self.drop_captions <= 1,
            f"parti.drop_captions={self.drop_captions} is a probability; give 0 to 1.",
        )
        require_range(self, "parti", ["encoder_layers"])
        require_range(self, "parti", ["text_tokens"], least=2)
