"""BLEU, ROUGE-L and CIDEr-D of captions, with COCO's own constants (arXiv 1504.00325).

All work on `ptb.tokens`; a caption is compared with every reference of its image.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cm3jax.errors import UserError
from cm3jax.evaluate.ptb import tokens
from cm3jax.shapes import Int

ORDERS = 4
_BETA = 1.2  # ROUGE-L: how much more recall counts than precision
_SIGMA = 6.0  # CIDEr-D: by how many words a length may differ
_LEAST, _NONE = 1e-9, 1e-15  # BLEU's guards against empty counts

_Words = Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionScores:
    """Scores of a set of captions, as COCO's code reports them."""

    counts: Int[np.ndarray, "B 10"]
    """For BLEU, of each caption: matched and possible runs of 1 to 4 words, words, and words of
    the reference nearest in length."""
    rouge_l: tuple[float, ...]
    """ROUGE-L of each caption; their mean is the set's."""
    cider: tuple[float, ...]
    """CIDEr-D of each caption, at most 10; their mean is the set's."""

    @property
    def bleu(self) -> tuple[float, ...]:
        """BLEU-1 to BLEU-4 of the whole set."""
        return _bleu(self.counts.sum(0))

    def bleu_intervals(self, resamples: int) -> list[tuple[float, float]]:
        """95 % intervals, by the bootstrap over captions."""
        share = np.full(len(self.counts), 1 / len(self.counts))
        times = np.random.default_rng(0).multinomial(len(self.counts), share, resamples)
        drawn = np.asarray([_bleu(sums) for sums in times @ self.counts])
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        return list(zip(low.tolist(), high.tolist(), strict=True))


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores of one caption per image against the image's references.

    Raises `UserError` where an image has no reference.
    """
    bare = [place for place, theirs in enumerate(references) if not theirs]
    if bare or not captions:
        what = f"image {bare[0]} has no reference" if bare else "there are no captions"
        raise UserError(f"{what}; captions are scored against at least one each.")
    made = [tokens(caption) for caption in captions]
    real = [[tokens(reference) for reference in theirs] for theirs in references]
    return CaptionScores(
        counts=np.asarray([_counts(*pair) for pair in zip(made, real, strict=True)]),
        rouge_l=tuple(_rouge(mine, theirs) for mine, theirs in zip(made, real, strict=True)),
        cider=tuple(_cider(made, real)),
    )


def _grams(words: _Words) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to 4 words occurs."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(words) - order + 1)
    )


def _counts(mine: _Words, theirs: Sequence[_Words]) -> list[int]:
    """A row of `CaptionScores.counts`."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in theirs:
        most |= _grams(reference)
    hits = [0] * ORDERS
    for gram, count in (_grams(mine) & most).items():
        hits[len(gram) - 1] += count
    tries = [max(0, len(mine) - order) for order in range(ORDERS)]
    closest = min((abs(len(one) - len(mine)), len(one)) for one in theirs)[1]
    return [*hits, *tries, len(mine), closest]


def _bleu(sums: Int[np.ndarray, " 10"]) -> tuple[float, ...]:
    *rest, length, closest = sums.tolist()
    ratio = (length + _NONE) / (closest + _LEAST)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, out = 1.0, []
    for order, (hits, tries) in enumerate(zip(rest[:ORDERS], rest[ORDERS:], strict=True), 1):
        product *= (hits + _NONE) / (tries + _LEAST)
        out.append(penalty * product ** (1 / order))
    return tuple(out)


def _rouge(mine: _Words, theirs: Sequence[_Words]) -> float:
    mine = mine or [""]  # a caption without words is one empty word there
    common = [_common(mine, one or [""]) for one in theirs]
    precision = max(common) / len(mine)
    recall = max(c / max(len(one), 1) for c, one in zip(common, theirs, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(a: _Words, b: _Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = before + 1 if word == other else max(above, row[place - 1])
            before = above
    return row[-1]


@dataclasses.dataclass(frozen=True)
class _Vector:
    """A caption as weighted runs of words, by order."""

    weights: tuple[Mapping[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int
    """Its pairs of words, which stand for its length there."""


def _cider(made: Sequence[_Words], real: Sequence[Sequence[_Words]]) -> list[float]:
    counted = [[_grams(one) for one in theirs] for theirs in real]
    pictures: Counter[tuple[str, ...]] = Counter()
    for theirs in counted:
        pictures.update(set().union(*theirs))
    total = math.log(len(made))

    def vector(grams: Counter[tuple[str, ...]]) -> _Vector:
        weights: tuple[dict, ...] = tuple({} for _ in range(ORDERS))
        for gram, count in grams.items():
            rarity = total - math.log(max(1, pictures[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        norms = tuple(math.sqrt(math.fsum(w * w for w in part.values())) for part in weights)
        length = sum(count for gram, count in grams.items() if len(gram) == 2)
        return _Vector(weights, norms, length)

    scores = []
    for words, theirs in zip(made, counted, strict=True):
        mine = vector(_grams(words))
        scores.append(10 * math.fsum(_alike(mine, vector(one)) for one in theirs) / len(theirs))
    return scores


def _alike(mine: _Vector, other: _Vector) -> float:
    """The mean over orders of the clipped cosine, less where lengths differ."""
    total = 0.0
    for a, b, x, y in zip(mine.weights, other.weights, mine.norms, other.norms, strict=True):
        if x and y:
            dot = math.fsum(min(w, b[gram]) * b[gram] for gram, w in a.items() if gram in b)
            total += dot / (x * y)
    return total / ORDERS * math.exp(-((mine.length - other.length) ** 2) / (2 * _SIGMA**2))
