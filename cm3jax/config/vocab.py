"""Sizes of the id space."""

import dataclasses

from cm3jax.config.checks import COUNTED, require, require_range


@dataclasses.dataclass(frozen=True)
class VocabConfig:
    """Sizes of the id space: specials | image codes | text pieces (CM3Leon's section 2.1)."""

    specials: int = 1024
    """Control ids: pad, eos, break, eoss and the sentinels; the rest is spare."""
    image_codes: int = 8192
    """Codes of the image tokenizer."""
    text_pieces: int = 56320
    """Pieces of the text tokenizer."""
    sentinels: int = 512
    """Mask ids; at least as many as masks in one row."""
    grid: int = 32
    """Codes along one side of an image; an image is grid x grid codes."""

    def __post_init__(self):
        sizes = ("specials", "image_codes", "text_pieces", "sentinels")
        require_range(self, "vocab", sizes, most=COUNTED)
        require_range(self, "vocab", ["grid"], most=1 << 15)  # its square is a length
        require(
            self.specials + self.image_codes + self.text_pieces <= COUNTED,
            f"vocab: specials={self.specials}, image_codes={self.image_codes} and "
            f"text_pieces={self.text_pieces} are more ids than 32 bits count; give fewer.",
        )
