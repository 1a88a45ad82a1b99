"""Text <-> pieces: SentencePiece, trained here, lossless for every Unicode string.

CM3Leon trains its own BPE (arXiv 2309.02591, section 2.1). Pieces are numbered from 0; the
vocabulary decides which ids they get. Characters that training did not see fall back to their UTF-8
bytes, so nothing is unknown, and no text can become a control id: `<break>` in a caption is just
seven characters. The tokenizers of foreign checkpoints have the same interface.
"""

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import digest, write_atomic
from cm3jax.io.texts import brief, read_regular
from cm3jax.tokenizers.huggingface import HuggingFaceModel

MODEL_FILE = "text.model"

LARGEST_SAMPLE = 10_000_000
"""Texts that a model is learnt from at most."""

# SentencePiece writes a space as U+2581 and reads every U+2581 as a space. One that stands in the
# text is therefore written as two characters that begin with a private-use one, as is that one.
ESCAPES = {"\ue000": "\ue0000", "\u2581": "\ue0001"}
_ORIGINALS = {escaped: original for original, escaped in ESCAPES.items()}
_TO_ESCAPE = re.compile("[\ue000\u2581]")
_ESCAPED = re.compile("\ue000[01]")
_RESERVED = re.compile("[\u2585\0]")
_LONGEST = 4192
"""Bytes of the longest text that SentencePiece learns from by default."""


def read_model(directory: epath.PathLike) -> bytes:
    """The content of `text.model` of a run; `UserError` if it is missing or no file."""
    path = epath.Path(directory) / MODEL_FILE
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no text tokenizer: {path} does not exist; train one with a text_tokenizer "
            "experiment, or correct tokenizers.text."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} would be a text tokenizer, but {error}; train one, or correct tokenizers.text."
        ) from None


class TextTokenizer:
    """A trained SentencePiece model, or the tokenizer of a converted checkpoint.

    With SentencePiece every text begins with a virtual space, so that a word is the same piece
    wherever it is, and every text survives; a converted tokenizer keeps its own rules.
    """

    def __init__(self, model: bytes):
        self._bytes = model
        foreign = model.startswith(b"{")  # JSON, which no SentencePiece model begins like
        self._model = HuggingFaceModel(model) if foreign else _SentencePieceModel(model)

    @classmethod
    def train(
        cls, texts: Iterable[str], pieces: int, algorithm: Literal["bpe", "unigram"] = "bpe"
    ) -> "TextTokenizer":
        """Learn `pieces` pieces from a stream of texts; equal streams give equal models.

        From more than `LARGEST_SAMPLE` texts, that many are drawn at random: SentencePiece holds
        what it learns from in memory. One piece is the unknown one (never produced), 256 are bytes,
        the rest are characters and what `algorithm` joins. Where the texts yield fewer, reserved
        pieces that no text encodes to fill the table. Raises `UserError` without texts, or if
        `pieces` can't hold the characters.
        """
        texts = _sample(part for text in texts for part in _learnable(text))
        if not texts:
            raise UserError(
                "the text tokenizer has no texts to learn from: no record of the source has a "
                "caption; docs/data.md says how captions are written."
            )
        tokenizer = cls(_train(texts, pieces, algorithm, reserved=0))
        if tokenizer.pieces < pieces:
            tokenizer = cls(_train(texts, pieces, algorithm, reserved=pieces - tokenizer.pieces))
        return tokenizer

    @classmethod
    def load(cls, directory: epath.PathLike) -> "TextTokenizer":
        """Read `text.model` of a run; `UserError` if it is missing or damaged."""
        try:
            return cls(read_model(directory))
        except RuntimeError:
            raise UserError(
                f"{epath.Path(directory) / MODEL_FILE} is damaged or not a SentencePiece model; "
                "train the text tokenizer again."
            ) from None

    def save(self, directory: epath.PathLike) -> None:
        """Write `text.model` atomically."""
        write_atomic(epath.Path(directory) / MODEL_FILE, self._bytes)

    @property
    def pieces(self) -> int:
        """Number of pieces; ids are 0..pieces-1."""
        return self._model.pieces

    @property
    def reserved(self) -> int:
        """How many of the pieces no text encodes: the texts yielded fewer than were asked for."""
        return self._model.reserved

    @property
    def fingerprint(self) -> str:
        """Identifies the model by its bytes."""
        return digest(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Pieces of a text; the empty text has none.

        Raises `UserError` for a text that is no Unicode: half a surrogate pair, or what Python
        makes of bytes on a command line that are no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text {brief(text)} is not UTF-8: character {error.start + 1} is half a "
                "surrogate pair or a byte of another encoding; write it in UTF-8."
            ) from None
        return self._model.encode(text)

    def decode(self, pieces: Sequence[int]) -> str:
        """The text of some pieces; `decode(encode(text)) == text` for SentencePiece models.

        Any other pieces give a text too: bytes that are not UTF-8 become U+FFFD, reserved pieces
        nothing. Raises `IndexError` for an id outside 0..pieces-1.
        """
        return self._model.decode([int(piece) for piece in pieces])


class _SentencePieceModel:
    """What `TextTokenizer` asks of a model; `RuntimeError` for other bytes."""

    def __init__(self, model: bytes):
        import sentencepiece  # only texts need it

        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.load_from_serialized_proto(model)

    @property
    def pieces(self) -> int:
        return self._processor.get_piece_size()

    @property
    def reserved(self) -> int:
        return sum(map(self._processor.is_control, range(self.pieces)))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(_escape(text))

    def decode(self, pieces: list[int]) -> str:
        text = self._processor.decode(pieces)
        return _ESCAPED.sub(lambda match: _ORIGINALS[match.group()], text)


def _escape(text: str) -> str:
    return _TO_ESCAPE.sub(lambda match: ESCAPES[match.group()], text)


def _learnable(text: str) -> Iterator[str]:
    """A text in stretches that SentencePiece learns from: it leaves out, and does not say so, what
    is longer than `_LONGEST` bytes or holds a character that it reserves. Words stay whole."""
    for part in _RESERVED.split(text):
        content = _escape(part).encode()
        while len(content) > _LONGEST:
            end = content.rfind(b" ", 1, _LONGEST + 1)
            if end < 0:  # one endless word
                end = _LONGEST
                while content[end] & 0xC0 == 0x80:  # not inside of a character
                    end -= 1
            yield content[:end].decode()
            content = content[end:].removeprefix(b" ")
        if content:
            yield content.decode()


def _sample(texts: Iterable[str]) -> list[str]:
    """All of a stream, or `LARGEST_SAMPLE` texts of it, each equally likely (reservoir sampling).

    The draws are always the same ones.
    """
    sample, draws = [], random.Random(0)
    for number, text in enumerate(texts):
        if number < LARGEST_SAMPLE:
            sample.append(text)
        elif (place := draws.randrange(number + 1)) < LARGEST_SAMPLE:
            sample[place] = text
    return sample


def _train(texts: Sequence[str], pieces: int, algorithm: str, reserved: int) -> bytes:
    """A SentencePiece model of at most `pieces` pieces, `reserved` of them control symbols."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=algorithm,
            vocab_size=pieces,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            # Characters beyond this share are left to their bytes.
            character_coverage=0.9999,
            split_digits=True,
            control_symbols=[f"<reserved:{index}>" for index in range(reserved)],
            # The vocabulary has its own specials (cm3jax.sequence.vocab).
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            unk_surface="\ufffd",
            minloglevel=2,
        )
    except RuntimeError as error:
        least = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        raise UserError(
            f"{pieces} text pieces can't be learnt from these texts ({_reason(error)}); give "
            f"{f'at least {least[1]}' if least else 'more'} as vocab.text_pieces, to launch.chain "
            "as --pieces."
        ) from None
    return model.getvalue()


def _reason(error: RuntimeError) -> str:
    """SentencePiece's message without the source position in front of it."""
    return str(error).split("] ")[-1].split(". ")[0].strip()
