"""Sampling and guidance."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import require

_COLDEST, _HOTTEST, _STRONGEST = 1e-4, 1e4, 1e4
"""Between them float32 logits stay finite when they are divided and guided."""


AUTO = -1
"""In `DecodeConfig.speculate`: what pays on this machine."""
_WIDEST = 64
"""Ids of a sample in a pass, at most."""


def _is_heat(temperature: float) -> bool:
    return _COLDEST <= temperature <= _HOTTEST


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How images and texts are sampled (CM3Leon's section 3.1)."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    temperature_range: tuple[float, float] | None = None
    """Draw each sample's temperature uniformly from this range instead."""
    top_p: float = 1.0
    """Nucleus: sample from the smallest set of tokens with this probability."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 keeps all. Applied before `top_p`."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 runs no unconditional stream."""
    edit_scales: tuple[float, float] = (7.5, 1.5)
    """Guidance of edited images: by the instruction, and by the image that is edited."""
    contrast: Literal["none", "half", "all"] = "none"
    """CD-K (contrastive decoding) in place of guidance, top-k and top-p: for no sample, for every
    second one, or for all. It applies to what guidance applies to."""
    contrast_k: int = 8
    """CD-K keeps tokens at least `contrast_alpha` times as likely as the k-th likeliest; 1 is
    contrastive decoding. The paper gives neither value."""
    contrast_alpha: float = 0.5
    """See `contrast_k`."""
    contrast_temperature: float = 0.5
    """CD-K: divides the unconditional logits."""
    grammar: bool = True
    """Permit only codes inside an image and only text inside a text, each of its right length.
    Without it the model may end an image early or late, which is then reported, not decoded."""
    max_text_tokens: int = 64
    """Longest text to generate, with the id that ends it."""
    max_document_tokens: int = 0
    """Longest interleaved document to generate; 0 goes as far as the context reaches."""
    batch: int = 64
    """Rows decoded at once, those of guidance included."""
    speculate: int = 0
    """Ids of a sample that a pass reads at most: the newest, and guesses of what follows it. All
    that are right cost one pass together; samples are the same with any number. 0 guesses
    nothing; -1 times passes on this machine, and takes what pays (where several processes share
    the rows, it guesses nothing)."""

    def __post_init__(self):
        require(0 < self.top_p <= 1, f"decode.top_p={self.top_p} must be in (0, 1].")
        require(
            self.temperature == 0 or _is_heat(self.temperature),
            f"decode.temperature={self.temperature} must be >= 0: 0, or from {_COLDEST} to "
            f"{_HOTTEST:g}.",
        )
        low, high = self.temperature_range or (1.0, 1.0)
        require(
            _is_heat(low) and _is_heat(high) and low <= high,
            f"decode.temperature_range={low} {high} must be two positive numbers, lower one first, "
            f"from {_COLDEST} to {_HOTTEST:g}.",
        )
        require(
            0 <= self.top_k < 2**31,
            f"decode.top_k={self.top_k} must be >= 0 and below 2^31; 0 keeps all.",
        )
        for name, scale in (
            ("guidance_scale", self.guidance_scale),
            ("edit_scales", self.edit_scales[0]),
            ("edit_scales", self.edit_scales[1]),
        ):
            require(
                0 <= scale <= _STRONGEST,
                f"decode.{name}={scale} must be from 0 to {_STRONGEST:g}; 1 does not guide.",
            )
        require(
            self.contrast in ("none", "half", "all"),
            f"decode.contrast={self.contrast} must be none, half or all.",
        )
        require(
            1 <= self.contrast_k < 2**31
            and 0 < self.contrast_alpha <= 1
            and _is_heat(self.contrast_temperature),
            f"decode: contrast_k={self.contrast_k} must be at least 1, contrast_alpha="
            f"{self.contrast_alpha} in (0, 1] and contrast_temperature="
            f"{self.contrast_temperature} from {_COLDEST} to {_HOTTEST:g}.",
        )
        require(
            self.max_text_tokens >= 2
            and self.batch >= 1
            and (self.max_document_tokens == 0 or self.max_document_tokens >= 2),
            "decode: max_text_tokens must be at least 2, batch at least 1, and "
            "max_document_tokens 0 or at least 2.",
        )
        require(
            AUTO <= self.speculate <= _WIDEST,
            f"decode.speculate={self.speculate} must be from 0 to {_WIDEST}, or {AUTO}, which takes"
            " what pays; 0 guesses nothing.",
        )

    @property
    def greedy(self) -> bool:
        """Whether no sample needs noise."""
        return self.temperature == 0 and self.temperature_range is None

    @property
    def guesses(self) -> bool:
        """Whether passes read guesses."""
        return self.speculate not in (0, 1)
