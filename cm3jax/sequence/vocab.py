"""One id space for everything the model reads and writes: specials | image codes | text pieces.

No other file knows an id or a length. CM3Leon's table is 1,024 + 8,192 + 56,320 = 65,536 entries
(arXiv 2309.02591, section 2.1); small vocabularies keep the order and shrink each part.
"""

import dataclasses
import enum

import numpy as np

from cm3jax.config import VocabConfig
from cm3jax.errors import UserError
from cm3jax.io.files import digest


class Modality(enum.IntEnum):
    """What an id stands for."""

    SPECIAL = 0
    IMAGE = 1
    TEXT = 2


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Ids of one vocabulary, and the fingerprint of the tokenizers that fill it.

    The specials are `pad`, `eos` (between samples), `break_` (between segments), `eoss` (end of
    a recalled span) and `sentinels` masks, each of which occurs twice in a masked sample: placed
    where the span was, recalled in front of the span's tokens at the end.
    """

    config: VocabConfig
    text_fingerprint: str = ""
    image_fingerprint: str = ""

    pad = 0
    eos = 1
    break_ = 2
    eoss = 3
    first_sentinel = 4

    def __post_init__(self):
        if self.first_sentinel + self.config.sentinels > self.config.specials:
            raise UserError(
                f"vocab.specials={self.config.specials} leaves no room for the 4 fixed specials "
                f"and vocab.sentinels={self.config.sentinels}; raise specials or lower sentinels."
            )

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.config.specials + self.config.image_codes + self.config.text_pieces

    @property
    def first_image(self) -> int:
        """The id of image code 0; code i is `first_image + i`."""
        return self.config.specials

    @property
    def first_text(self) -> int:
        """The id of text piece 0; piece i is `first_text + i`."""
        return self.config.specials + self.config.image_codes

    @property
    def image_tokens(self) -> int:
        """Codes of one image, row-major."""
        return self.config.grid**2

    def sentinel(self, index: int) -> int:
        """The id of mask number `index`; mask 0 is the `<mask>` and `<infill>` of the paper."""
        if not 0 <= index < self.config.sentinels:
            raise ValueError(f"sentinel {index} is outside 0..{self.config.sentinels - 1}")
        return self.first_sentinel + index

    def modality(self, ids, xp=np):
        """The `Modality` of each id, elementwise, on numpy or jax.numpy integers of any shape."""
        return xp.where(
            ids >= self.first_text,
            int(Modality.TEXT),
            xp.where(ids >= self.first_image, int(Modality.IMAGE), int(Modality.SPECIAL)),
        )

    def is_sentinel(self, ids):
        """Which ids are masks (placed or recalled), elementwise."""
        return (ids >= self.first_sentinel) & (ids < self.first_sentinel + self.config.sentinels)

    def name(self, id_: int) -> str:
        """A readable name of one id, for `--show-sequence` and `prepare show`."""
        fixed = {self.pad: "<pad>", self.eos: "<eos>", self.break_: "<break>", self.eoss: "<eoss>"}
        if id_ in fixed:
            return fixed[id_]
        if self.is_sentinel(id_):
            return f"<mask:{id_ - self.first_sentinel}>"
        if id_ < self.first_image:
            return f"<special:{id_}>"
        if id_ < self.first_text:
            return f"I{id_ - self.first_image}"
        return f"T{id_ - self.first_text}"

    @property
    def fingerprint(self) -> str:
        """Identifies sizes and both tokenizers; data and weights of another one are refused."""
        sizes = dataclasses.astuple(self.config)
        return digest(repr(sizes), self.text_fingerprint, self.image_fingerprint)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the vocabulary and of both tokenizers, as checkpoints keep them."""
        return {
            "vocab": self.fingerprint,
            "text": self.text_fingerprint,
            "image": self.image_fingerprint,
        }

    def require(self, fingerprint: str, what: str) -> None:
        """Raise `UserError` unless `what` was made with this vocabulary."""
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{what} was made with vocabulary {fingerprint}, but this run's tokenizers give "
                f"{self.fingerprint}; use the tokenizers that made it, or make it again."
            )
