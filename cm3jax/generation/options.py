"""How samples are drawn, as plain keywords: `model.generate("…", temperature=0.8, seed=3)`."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from cm3jax.config import DecodeConfig
from cm3jax.config.decoding import AUTO
from cm3jax.errors import UserError, nearest

_MOST_SAMPLES = 100_000


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` and of `DecodeConfig`, which explain them."""

    samples: int
    seed: int
    decode: DecodeConfig | None
    prompt_ids: Sequence[int] | None
    temperature: float
    temperature_range: tuple[float, float] | None
    top_p: float
    top_k: int
    guidance_scale: float
    edit_scales: tuple[float, float]
    contrast: Literal["none", "half", "all"]
    contrast_k: int
    contrast_alpha: float
    contrast_temperature: float
    grammar: bool
    max_text_tokens: int
    max_document_tokens: int
    batch: int
    speculate: int | Literal["auto"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn."""

    samples: int = 1
    """Samples of each prompt."""
    seed: int = 0
    """Seed of their noise."""
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    """How tokens are chosen."""
    prompt_ids: Sequence[int] | None = None
    """Name the prompts' noise, instead of their places in the list."""

    @classmethod
    def of(cls, options: Mapping[str, Any], usual: DecodeConfig) -> "Sampling":
        """From keywords: a `decode` replaces `usual`, and keywords of its fields replace its own.

        Raises `UserError` for a keyword of neither class, and for a value that its field refuses.
        """
        fields = {field.name for field in dataclasses.fields(DecodeConfig)}
        own = {name: value for name, value in options.items() if name not in fields}
        for name in own.keys() - SamplingOptions.__annotations__.keys():
            known = SamplingOptions.__annotations__
            raise UserError(
                f"there is no option {name!r}{nearest(name, known)}; there are {', '.join(known)}."
            )
        for name, least, most in (("samples", 1, _MOST_SAMPLES), ("seed", 0, 2**32 - 1)):
            value = own.get(name, least)
            if not hasattr(value, "__index__") or not least <= value <= most:
                raise UserError(f"{name}={value!r} must be a whole number from {least} to {most}.")
        chosen = {name: value for name, value in options.items() if name in fields}
        if "temperature" in chosen:
            chosen.setdefault("temperature_range", None)  # else the run's would go before it
        if chosen.get("speculate") == "auto":
            chosen["speculate"] = AUTO
        try:
            for name, value in chosen.items():
                if isinstance(getattr(usual, name), int):
                    operator.index(value)  # 2.5 would be rounded later, and silently
            decode = dataclasses.replace(own.pop("decode", None) or usual, **chosen)
        except UserError:
            raise
        except (TypeError, ValueError, IndexError):
            said = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            raise UserError(
                f"an option has a value of another type than its field of DecodeConfig: {said}."
            ) from None
        return cls(decode=decode, **own)
