"""What decoding needs from a model, whatever its architecture: `Decoder`, `EncoderDecoder`, or a
new one."""

from typing import Any, Protocol, runtime_checkable

from cm3jax.config import DecoderConfig
from cm3jax.model.cache import Cache, KeyValues
from cm3jax.shapes import Array, Float, Int


@runtime_checkable
class LanguageModel(Protocol):
    """A Linen module over one vocabulary, whose layers' parameters are apart
    (`decode.params.as_read`)."""

    @property
    def config(self) -> DecoderConfig:
        """Sizes and activation type of the layers that grow the cache."""

    @property
    def longest_prompt(self) -> int:
        """Tokens that `prefill` reads at most."""

    @property
    def reads_forward(self) -> bool:
        """Whether what `prefill` finds of a prompt holds for every one that begins with it."""

    def room(self, prompt: int) -> int:
        """How many tokens fit after a prompt of `prompt` tokens; none or less if it is too long."""

    def prefill(
        self, tokens: Int[Array, "P S"], lengths: Int[Array, " P"]
    ) -> tuple[Float[Array, "P S D"], tuple[KeyValues, ...]]:
        """Final hidden states of prompts, and what later tokens read of them in every layer.

        Prompts are at the left; beyond `lengths` is padding.
        """

    def extend(
        self, tokens: Int[Array, "B T"], cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states of T more tokens per row, and the cache with them in it."""

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of every id as float32."""

    def apply(self, variables: dict, *args: Any, **kwargs: Any) -> Any:
        """Run the method named `method` with these variables (`flax.linen.Module.apply`)."""
