"""Ids of a Chameleon-class checkpoint (`vocabulary_map`) <-> ids of our vocabulary.

There, control tokens, image codes and text are where their training put them; here they are in the
order specials | image codes | text. Converting permutes the rows of the embedding and the head, so
that nothing else ever sees the other order. No id is known but by its name.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cm3jax.config import VocabConfig
from cm3jax.errors import UserError
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int

_FIXED = ("<pad>", "</s>", "<racm3:break>", "<eoss>")
"""Their names of `Vocab.pad`, `eos`, `break_` and `eoss`."""
_IMAGE = "<image>"
"""Stands for an image in their prompts; no input of the model."""
_SPARE = re.compile(r"<(s|image|reserved\d+)>")
_CODE = re.compile(r"IMGIMG([A-J]+)Z")
"""An image code: its decimal digits as letters."""
_MOST_SENTINELS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The sizes of our vocabulary, and the foreign id of each of our ids."""

    config: VocabConfig
    ids: Int[np.ndarray, " V"]
    """Theirs by ours, int64; a permutation."""

    @property
    def text_ids(self) -> list[int]:
        """The foreign ids of our text pieces, in order."""
        return self.ids[self.config.specials + self.config.image_codes :].tolist()


def read_map(names: Mapping[str, Any], size: int, grid: int) -> Vocabulary:
    """The vocabulary of a `vocabulary_map` for `size` ids and images of `grid` x `grid` codes.

    Ids without a name are spare. Where no `<sentinel:i>` are named, spare ids serve as masks: the
    weights know neither. Raises `UserError` for a map that lacks what our documents need.
    """
    if not all(type(id_) is int for id_ in names.values()):
        raise UserError("the vocabulary_map gives ids that are not integers; get the config again.")
    if len(set(names.values())) < len(names):
        raise UserError("the vocabulary_map gives one id to two names; get the config again.")
    outside = [name for name, id_ in names.items() if not 0 <= id_ < size]
    if outside:
        raise UserError(
            f"the vocabulary_map gives {outside[0]!r} an id outside 0..{size - 1} (vocab_size); "
            "get the config again."
        )
    missing = [name for name in _FIXED if name not in names]
    if missing:
        raise UserError(f"the vocabulary_map has no {missing[0]}; give a Chameleon-class config.")
    sentinels: list[int] = []
    while (name := f"<sentinel:{len(sentinels)}>") in names:
        sentinels.append(names[name])
    named = set(names.values())
    spare = [id_ for id_ in range(size) if id_ not in named]
    spare += sorted(id_ for name, id_ in names.items() if _SPARE.fullmatch(name))
    if not sentinels:
        sentinels, spare = spare[:_MOST_SENTINELS], spare[_MOST_SENTINELS:]
    codes = _codes(names)
    specials = [*(names[name] for name in _FIXED), *sentinels, *spare]
    text = sorted(named - {*specials, *codes})
    if not (sentinels and text):
        raise UserError(
            "the vocabulary_map leaves no ids for masks or none for text; get the config again."
        )
    config = VocabConfig(len(specials), len(codes), len(text), len(sentinels), grid)
    return Vocabulary(config, np.asarray([*specials, *codes, *text]))


def _codes(names: Mapping[str, int]) -> list[int]:
    """The ids of image codes 0, 1, ..."""
    digits = str.maketrans("ABCDEFGHIJ", "0123456789")
    codes = {
        int(found[1].translate(digits)): id_
        for name, id_ in names.items()
        if (found := _CODE.fullmatch(name))
    }
    missing = sorted(set(range(len(codes))) - codes.keys())
    if missing or not codes:
        raise UserError(
            f"the vocabulary_map has no image code {missing[0] if missing else 0} (names like "
            "IMGIMGAZ); give a Chameleon-class config."
        )
    return [codes[code] for code in range(len(codes))]


def make_map(vocab: Vocab) -> dict[str, int]:
    """A `vocabulary_map` for our own order of ids; `UserError` if no special is spare."""
    spare = range(vocab.first_sentinel + vocab.config.sentinels, vocab.config.specials)
    if not spare:
        raise UserError(
            f"vocab.specials={vocab.config.specials} leaves no id for {_IMAGE}, which the other "
            "format needs; give a model with a spare special."
        )
    fixed = zip(_FIXED, (vocab.pad, vocab.eos, vocab.break_, vocab.eoss), strict=True)
    names = dict(fixed) | {_IMAGE: spare[0]}
    names |= {f"<sentinel:{i}>": vocab.sentinel(i) for i in range(vocab.config.sentinels)}
    names |= {f"<reserved{id_:05d}>": id_ for id_ in spare[1:]}
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    for code in range(vocab.config.image_codes):
        names[f"IMGIMG{str(code).translate(letters)}Z"] = vocab.first_image + code
    return names | {f"<text:{i}>": vocab.first_text + i for i in range(vocab.config.text_pieces)}
