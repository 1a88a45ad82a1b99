"""Tokenizers of images and text, and how the image tokenizer is trained."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import (
    COUNTED,
    LARGEST,
    require,
    require_decays,
    require_not_negative,
    require_range,
)
from cm3jax.config.data import DataConfig
from cm3jax.config.retrieval import ClipConfig


@dataclasses.dataclass(frozen=True)
class TokenizersConfig:
    """Where the tokenizers are, and how the text tokenizer is trained."""

    text: str = ""
    """Run directory of a text tokenizer (it holds `text.model`)."""
    image: str = ""
    """Run directory of an image tokenizer."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """SentencePiece algorithm (`text_tokenizer` experiments)."""


_ADDED = {
    *("attention_sides", "latent_width", "codebook", "vision_ffn", "text_ffn", "resize"),
    *("partners", "splits", "hold_back"),
}


def identity(config: "VQGANConfig | ClipConfig | DataConfig") -> str:
    """What a config contributes to fingerprints: its `repr` without fields that were added later
    and are at their default, so that what was made before them still fits."""
    kept = (
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in _ADDED or getattr(config, field.name) != field.default
    )
    return f"{type(config).__name__}({', '.join(kept)})"


_LEVELS = 24
"""More than halve any image."""


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """The image tokenizer: the taming / Make-A-Scene family, or a patch-local one for CPUs."""

    image_size: int = 256
    """Pixels along one side."""
    patch: int = 1
    """Pixels along one side of the stem's patch; 1 is a plain convolution, 8 makes one code of 8x8
    pixels before any further level (as in ViT-VQGAN)."""
    channels: int = 128
    """Base channels."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channel multiplier of each level; each level but the last halves the side."""
    blocks: int = 2
    """Residual blocks per level."""
    attention: bool = True
    """Self-attention in the middle (taming's `mid.attn_1`)."""
    attention_sides: tuple[int, ...] = ()
    """Self-attention after every residual block of the levels that have these numbers of positions
    along a side (taming's `attn_resolutions`)."""
    kernel: Literal[1, 3] = 3
    """Convolution kernel of residual blocks; with 1 and patch > 1 a code depends only on its own
    patch."""
    codes: int = 8192
    """Codebook entries; must equal vocab.image_codes."""
    code_width: int = 256
    """Width of a codebook entry."""
    latent_width: int = 0
    """Channels at the encoder's end and the decoder's beginning (taming's `z_channels`); 0 takes
    code_width."""
    commitment: float = 0.25
    """Weight of the commitment loss (beta)."""
    codebook: Literal["ema", "gradient"] = "ema"
    """How entries follow their inputs: as moving averages (`ema`), or as parameters, by the
    gradient of the squared distance (`gradient`: taming's way, which has no restarts)."""
    ema_decay: float = 0.99
    """Decay of the codebook's moving averages."""
    restart_below: float = 0.01
    """An entry whose moving average of uses per batch falls below this moves to a random input."""

    @property
    def downsample(self) -> int:
        """Pixels per code along one side (f)."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side."""
        return self.image_size // self.downsample

    @property
    def latents(self) -> int:
        """Channels at the encoder's end and the decoder's beginning."""
        return self.latent_width or self.code_width

    def attends_at(self, level: int) -> bool:
        """Whether a level's residual blocks are followed by self-attention."""
        return self.image_size // (self.patch * 2**level) in self.attention_sides

    def __post_init__(self):
        sizes = ("image_size", "patch", "channels", "codes", "code_width")
        require_range(self, "vqgan", sizes)
        require_range(self, "vqgan", ("blocks", "latent_width"), least=0)
        require_not_negative(self, "vqgan", ("commitment", "restart_below"))
        require_decays(self, "vqgan", ["ema_decay"])
        require(
            1 <= len(self.multipliers) <= _LEVELS
            and all(1 <= factor <= LARGEST for factor in self.multipliers),
            f"vqgan.multipliers={self.multipliers} must be 1 to {_LEVELS} numbers of at least 1.",
        )
        require(
            self.image_size % self.downsample == 0,
            f"vqgan.image_size={self.image_size} is not a multiple of {self.downsample} "
            "(vqgan.patch times 2 per further level); change one of them.",
        )
        require(
            self.kernel == 3
            or (len(self.multipliers) == 1 and not self.attention and not self.attention_sides),
            "vqgan.kernel=1 keeps patches apart, which several vqgan.multipliers or "
            "vqgan.attention would mix; use one multiplier and no attention, or vqgan.kernel=3.",
        )
        sides = {self.image_size // self.patch // 2**n for n in range(len(self.multipliers))}
        require(
            set(self.attention_sides) <= sides,
            f"vqgan.attention_sides={self.attention_sides} names a side that no level has; the "
            f"levels' sides are {sorted(sides)}.",
        )


@dataclasses.dataclass(frozen=True)
class VQGANLossConfig:
    """Losses of the image tokenizer besides `vqgan.commitment` (arXiv 2012.09841, section 3.1).

    The defaults suit flat colours; photographs need all of them.
    """

    pixels: Literal["l2", "l1"] = "l2"
    """Error of a pixel: squared or absolute."""
    perceptual: float = 0.0
    """Weight of the perceptual loss (LPIPS, arXiv 1801.03924), which needs vqgan_loss.lpips."""
    lpips: str = ""
    """A .safetensors or .npz file of LPIPS weights (VGG16), or `random`: the distance between
    features of an untrained network, logged as `random_features` since it is not LPIPS."""
    adversarial: float = 0.0
    """Share of the adversarial loss in the gradient at the decoder's last layer: 1 gives it as much
    as pixels and perception together have. 0 trains no discriminator."""
    adversarial_start: int = 250_000
    """Updates before the adversarial loss begins and the discriminator learns."""
    discriminator_channels: int = 64
    """Channels of the discriminator's first level; each further one has twice as many, up to 8
    times."""
    discriminator_layers: int = 3
    """Levels of the discriminator that halve the side."""
    region: float = 0.0
    """Extra weight of the pixels in the source's masks (Make-A-Scene's faces and objects): a pixel
    weighs 1 + region * mask in the pixel loss and in the perceptual loss. 0 reads no masks."""

    def __post_init__(self):
        require_not_negative(self, "vqgan_loss", ("perceptual", "adversarial", "region"))
        require_range(self, "vqgan_loss", ["adversarial_start"], 0, COUNTED)
        require_range(self, "vqgan_loss", ("discriminator_channels", "discriminator_layers"))
