"""The text tokenizer of a foreign checkpoint (`tokenizer.json`), behind pieces that count from 0.

Foreign tables mix control tokens, image codes and text; the text ids among them become pieces, in
order. `pack_tokenizer` puts the tokenizer and those ids into the bytes that `TextTokenizer` reads
and saves.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3jax.errors import UserError
from cm3jax.io.texts import decode_text, read_regular


def pack_tokenizer(tokenizer_json: str, ids: Sequence[int]) -> bytes:
    """The model of a `tokenizer.json` whose text has these ids, in order of its pieces."""
    return json.dumps({"ids": list(ids), "tokenizer": tokenizer_json}).encode()


def read_tokenizer(folder: Path, ids: Sequence[int]) -> bytes:
    """`pack_tokenizer` of a folder's tokenizer; one without a `tokenizer.json` is made by
    transformers.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            return pack_tokenizer(decode_text(read_regular(path, None)), ids)
        except (OSError, ValueError):
            raise UserError(f"{path} can't be read as UTF-8; get it again.") from None
    try:
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return pack_tokenizer(slow.backend_tokenizer.to_str(), ids)
    except Exception:  # whatever the folder makes transformers raise
        raise UserError(
            f"{folder} holds no text tokenizer; put its tokenizer.json beside the weights."
        ) from None


def unpack(model: bytes) -> str:
    """The `tokenizer.json` that `pack_tokenizer` was given."""
    return json.loads(model)["tokenizer"]


def token_table(model: bytes) -> dict[str, int]:
    """The ids of all tokens of the packed tokenizer; `UserError` if it is none."""
    return _tokenizer(unpack(model)).get_vocab(with_added_tokens=True)


def ends(model: bytes) -> list[int]:
    """The ids that the packed tokenizer puts around a text."""
    return _tokenizer(unpack(model)).encode("").ids


def _tokenizer(tokenizer_json: str) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception:  # the library raises nothing narrower
        raise UserError(
            "the text tokenizer is damaged or not a tokenizer.json; convert it again."
        ) from None


class HuggingFaceModel:
    """What `TextTokenizer` asks of a model; `UserError` if `pack_tokenizer` did not make it."""

    def __init__(self, model: bytes):
        try:
            values = json.loads(model)
            self._ids: list[int] = values["ids"]
            text: str = values["tokenizer"]
        except (ValueError, KeyError, TypeError):
            raise UserError("the text tokenizer is damaged; convert it again.") from None
        self._tokenizer = _tokenizer(text)
        # A control token's name in a text is text.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pieces = {id_: piece for piece, id_ in enumerate(self._ids)}

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return len(self._ids)

    reserved = 0
    """Pieces that no text encodes; a published tokenizer has none."""

    def encode(self, text: str) -> list[int]:
        """Pieces of a text; never a control token or an image code, whatever the text says."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pieces = []
        for id_, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if id_ in self._pieces:
                pieces.append(self._pieces[id_])
            elif stop - start > 1:  # it spells a token that is not a text: its halves don't
                half = (start + stop) // 2
                pieces += self.encode(text[start:half]) + self.encode(text[half:stop])
        return pieces

    def decode(self, pieces: Sequence[int]) -> str:
        """The text of some pieces; `IndexError` for an id outside 0..pieces-1."""
        if any(not 0 <= piece < self.pieces for piece in pieces):
            raise IndexError(f"there are pieces outside 0..{self.pieces - 1}")
        ids = [self._ids[piece] for piece in pieces]
        return self._tokenizer.decode(ids, skip_special_tokens=False)
