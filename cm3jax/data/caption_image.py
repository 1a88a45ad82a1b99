"""Batches for the encoder-decoder: captions and images of the corpus, separately."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal, no_type_check

import jax
import numpy as np

from cm3jax.config import DataConfig, PartiConfig, VocabConfig
from cm3jax.data.corpus import Corpus, Documents
from cm3jax.data.pipeline import HostBatch, Position, RecordStream
from cm3jax.sequence import prng
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import AnyArray, Float, Int


@no_type_check  # transformations also fill it with shapes, shardings and the like
@partial(
    jax.tree_util.register_dataclass, data_fields=["texts", "codes", "weights"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """A caption and an image per row."""

    texts: Int[AnyArray, "B S"]
    """Ids of the caption and `eos`, then `pad`; only `eos` where there is no caption."""
    codes: Int[AnyArray, "B L"]
    """Ids of the image, row-major; `pad` where there is none."""
    weights: Float[AnyArray, "B L"]
    """Loss weight of each code: 1, or 0 where there is no image."""


def split_documents(ids: Int[np.ndarray, "B W"], vocab: Vocab, text_tokens: int) -> Pairs:
    """The first text and the first image of each document, padded with 0 to a common width.

    A text of more than `text_tokens` - 1 ids is cut.
    """
    rows, codes = len(ids), vocab.image_tokens
    texts = np.full((rows, text_tokens), Vocab.pad, np.int32)
    images = np.full((rows, codes), Vocab.pad, np.int32)
    kinds = vocab.modality(ids)
    for row in range(rows):
        text = _first_run(ids[row], kinds[row] == int(Modality.TEXT))[: text_tokens - 1]
        texts[row, : len(text) + 1] = [*text, vocab.eos]
        image = _first_run(ids[row], kinds[row] == int(Modality.IMAGE))
        images[row, : len(image)] = image
    weights = np.repeat((images[:, :1] != Vocab.pad).astype(np.float32), codes, axis=1)
    return Pairs(texts, images, weights)


def _first_run(ids, chosen):
    """The ids of the first unbroken run of what is chosen."""
    start = int(np.argmax(chosen))
    stop = start + int(np.argmin(np.append(chosen[start:], False)))
    return ids[start:stop]


class CaptionImageStream:
    """Shuffled pairs of a prepared corpus; a share `drop` of them without their captions.

    Which ones is a function of seed, epoch and record.
    """

    def __init__(
        self,
        corpus: Corpus,
        batch: int,
        seed: int,
        text_tokens: int,
        drop: float,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """`batch` pairs in a global batch, captions of up to `text_tokens` ids."""
        self.corpus, self.drop = corpus, drop
        self._batch, self._seed, self._text_tokens = batch, seed, text_tokens
        self._processes = (process_index, process_count)
        self._documents = Documents(corpus.lengths, corpus.ids, corpus.all_ids)

    @staticmethod
    def open(
        data: DataConfig,
        vocab: VocabConfig,
        config: PartiConfig,
        seed: int,
        split: Literal["train", "validation"],
    ) -> "CaptionImageStream":
        """The stream of this process over `data.corpus`; training drops captions.

        Raises `UserError` when the corpus is missing, damaged, or has other vocabulary sizes.
        """
        corpus = Corpus.open(f"{data.corpus}/{split}", vocab)
        drop = config.drop_captions if split == "train" else 0.0
        return CaptionImageStream(
            corpus,
            data.batch,
            seed,
            config.text_tokens,
            drop,
            jax.process_index(),
            jax.process_count(),
        )

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The corpus's fingerprint."""
        return {"corpus": self.corpus.fingerprint}

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """This process's rows of the global batches from `position` on, without end."""
        records = {"record": np.arange(len(self.corpus))}
        stream = RecordStream(records, self._batch, self._seed, *self._processes)
        for batch in stream.batches(position):
            pairs = self._pairs(batch.data["record"], position.epoch)
            yield dataclasses.replace(batch, data=pairs)
            position = batch.next

    def _pairs(self, records: Int[np.ndarray, " B"], epoch: int) -> Pairs:
        vocab = self.corpus.vocab
        ids, _ = self._documents.padded(records)
        pairs = split_documents(ids, vocab, self._text_tokens)
        word = prng.bits(np, self._seed, epoch, records, prng.PrngStream.NO_CAPTION, 1)[:, 0]
        dropped = prng.chance(np, word, self.drop)
        bare = np.full_like(pairs.texts[0], Vocab.pad)
        bare[0] = vocab.eos
        return dataclasses.replace(pairs, texts=np.where(dropped[:, None], bare, pairs.texts))
