"""What records are about where their source does not say: groups by caption or by image."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cm3jax.retrieval.exact import ExactIndex
from cm3jax.shapes import Float

Partners = Literal["subjects", "captions", "nearest", "pictures"]
_WIDTH = 512
"""Numbers that the words of a caption are hashed to."""
_NEAR = 0.3
"""Least cosine of two captions' words that makes them nearest."""

Subjects = list[tuple[str, ...]]


def with_partners(
    subjects: Subjects, captions: Sequence[str], pictures: Sequence[str], partners: Partners
) -> Subjects:
    """The subjects of records; of one that names none, the group that `partners` puts it in.

    `pictures` identify each record's image. `captions` groups equal captions, ignoring case and
    spaces; `nearest` also joins each caption to the one that shares the rarest words with it.
    """
    if partners == "subjects":
        return subjects
    groups = list(pictures)
    if partners != "pictures":
        groups = [" ".join(caption.casefold().split()) for caption in captions]
    if partners == "nearest":
        groups = _joined(groups)
    own = zip(subjects, groups, strict=True)
    return [names or (f"{partners}: {group}",) for names, group in own]


def _joined(captions: list[str]) -> list[str]:
    """Each caption's group: the first of all that are linked by being nearest to one another."""
    unique = list(dict.fromkeys(captions))
    vectors = word_vectors(unique)
    found = ExactIndex(vectors).search(vectors, 2)
    first = np.arange(len(unique))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]
            number = int(first[number])
        return number

    for number, (ids, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
        for other, score in zip(ids.tolist(), scores, strict=True):
            if other != number and score >= _NEAR:
                low, high = sorted((root(number), root(other)))
                first[high] = low
    group = {caption: unique[root(number)] for number, caption in enumerate(unique)}
    return [group[caption] for caption in captions]


def word_vectors(captions: Sequence[str]) -> Float[np.ndarray, f"M {_WIDTH}"]:
    """Unit vectors of captions: their words, hashed, the rarer the heavier (TF-IDF)."""
    words = [re.findall(r"\w+", caption) for caption in captions]
    held = Counter(word for own in words for word in set(own))
    vectors = np.zeros((len(captions), _WIDTH), np.float32)
    for vector, own in zip(vectors, words, strict=True):
        for word in own:
            place = zlib.crc32(word.encode())
            sign = 1 if place & 1 else -1
            vector[(place >> 1) % _WIDTH] += sign * np.log1p(len(captions) / held[word])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.float32(1e-9))
