"""Records of a source as queries to a bank: by their texts, by their images, by both."""

import dataclasses

import numpy as np

from cm3jax.config import DataConfig
from cm3jax.data.readers.items import BadRecord
from cm3jax.data.sources import open_source
from cm3jax.retrieval.clip_encoder import ClipEncoder, fit_picture, text_and_image
from cm3jax.retrieval.interface import QueryVectors
from cm3jax.shapes import Float

_QUERIES = 500


@dataclasses.dataclass(frozen=True, eq=False)
class Asking:
    """Pairs of a text and an image, encoded each way."""

    text: Float[np.ndarray, "B E"]
    image: Float[np.ndarray, "B E"]
    document: Float[np.ndarray, "B E"]
    subjects: list[tuple[str, ...]]
    pairs: list[tuple[str, np.ndarray]]

    @property
    def queries(self) -> QueryVectors:
        """By kind; none where there are no pairs."""
        if not self.pairs:
            return {}
        return {"text": self.text, "image": self.image, "both": self.document}


def asking(data: DataConfig, seed: int, encoder: ClipEncoder, split: str) -> Asking:
    """The pairs among the first 500 records of a split. An index chooses its effort by those of
    `train` and is judged by those of `validation`."""
    source = open_source(data, split, seed)
    pairs, subjects = [], []
    for number in range(min(_QUERIES, len(source))):
        try:
            record = source[number]
        except BadRecord:  # the preparation lists it
            continue
        text, image = text_and_image(record.segments)
        if text is not None and image is not None:
            pairs.append((text, fit_picture(image, encoder.config)))
            subjects.append(record.subjects)
    texts = encoder.encode_texts([text for text, _ in pairs])
    images = encoder.encode_images([image for _, image in pairs])
    return Asking(texts, images, encoder.encode_documents(pairs), subjects, pairs)
