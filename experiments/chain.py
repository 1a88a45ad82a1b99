"""What every chain of experiments shares: a few choices decide all its members, so that they agree.

text tokenizer -> image tokenizer -> retrieval encoder -> decoder
"""

import dataclasses

from cm3jax.config import (
    ClipConfig,
    DataConfig,
    DecoderConfig,
    Experiment,
    RetrievalConfig,
    TokenizersConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.config.checks import require

_HEAD = 32
"""Width of one head of attention."""
_TEXT = 64
"""Tokens of a text, with its ends, that a row has room for besides each image."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices from which the members of a chain follow."""

    side: int = 64
    """Pixels along one side of all images: 32, 64, 128 or 256."""
    codes: int = 0
    """Codes of one image, a power of 4: the more, the finer, and the longer a row; 0 takes 64 at
    32 pixels, 256 at 64 and 128, and 1,024 at 256."""
    codebook: int = 1024
    """Different codes of the image tokenizer."""
    pieces: int = 1024
    """Pieces of the text tokenizer."""
    width: int = 128
    """Width of the decoder, a multiple of 32; its depth follows: 4 layers at 128, 10 at 512."""
    context: int = 0
    """Tokens of a training row; 0 gives room for two documents and the query, each a text of 64
    tokens and an image."""

    def __post_init__(self):
        require(
            self.side in (32, 64, 128, 256),
            f"side={self.side} is none of 32, 64, 128 and 256 pixels; give one of them.",
        )
        require(
            self.codes == 0 or (self.grid**2 == self.codes and self.side // self.grid in (2, 4, 8)),
            f"codes={self.codes} cuts no image of {self.side} pixels into squares of 2, 4 or 8; "
            f"give {', '.join(str((self.side // n) ** 2) for n in (8, 4, 2))}, or 0.",
        )
        require(
            self.width >= _HEAD and self.width % _HEAD == 0,
            f"width={self.width} must be a multiple of {_HEAD}.",
        )
        require(
            min(self.codebook, self.pieces) >= 2,
            f"codebook={self.codebook} and pieces={self.pieces} must be at least 2.",
        )
        least = self.grid**2 + _TEXT
        require(
            self.context == 0 or self.context >= least,
            f"context={self.context} has no room for a text and {self.grid**2} codes; give "
            f"{least} or more, or 0.",
        )

    @property
    def grid(self) -> int:
        """Codes along one side of an image."""
        if not self.codes:
            return {32: 8, 64: 16, 128: 16, 256: 32}[self.side]
        return round(self.codes**0.5)

    @property
    def row(self) -> int:
        """Tokens of a training row, a multiple of 128 where it is not chosen."""
        return self.context or -(-(3 * (self.grid**2 + _TEXT) + _HEAD) // 128) * 128


SMALL = Choices()
"""What trains on two CPU cores within hours."""


def chain_base(name: str, choices: Choices, runs: str, data: str) -> Experiment:
    """The experiment `name` of a chain whose runs are in the folder `runs`, its corpus and bank in
    `data`: everything that must agree does, the rest is for a small decoder."""
    return Experiment(
        name=name,
        vocab=VocabConfig(
            specials=32,
            image_codes=choices.codebook,
            text_pieces=choices.pieces,
            sentinels=17,
            grid=choices.grid,
        ),
        tokenizers=TokenizersConfig(text=f"{runs}/text", image=f"{runs}/vqgan", algorithm="bpe"),
        vqgan=VQGANConfig(
            image_size=choices.side,
            patch=choices.side // choices.grid,
            channels=128,
            multipliers=(1,),
            blocks=0,
            attention=False,
            kernel=1,
            codes=choices.codebook,
        ),
        clip=ClipConfig(
            image_size=choices.side,
            patch=choices.side // 4,
            vision_width=128,
            vision_layers=2,
            vision_heads=4,
            text_width=128,
            text_layers=2,
            text_heads=4,
            text_context=_TEXT,
            text_vocab=choices.pieces + 2,  # the text pieces, begin and end
            width=128,
        ),
        # An image's cells are found by their distance from its break, and a document's by theirs:
        # rotary positions say distances at once, a table has to learn them.
        model=DecoderConfig(
            layers=2 + choices.width // 64,
            width=choices.width,
            heads=choices.width // _HEAD,
            head_width=_HEAD,
            ffn=4 * choices.width,
            context=choices.row,
            positions="rope",
            qk_norm=True,
            dtype="float32",
            unroll=4,
            init_std=0.02,
        ),
        retrieval=RetrievalConfig(
            encoder=f"{runs}/clip",
            pool=48,
            # A text alone is nearer to a text than any pair is, and has no image to copy from.
            modality_margin=0.5,
            views=1,
        ),
        data=DataConfig(image_size=choices.side, corpus=f"{data}/corpus", bank=f"{data}/bank"),
    )
