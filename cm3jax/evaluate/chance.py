"""What guessing scores: the baseline reported with every share."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def of_another_answer(answers: Sequence[Hashable]) -> float:
    """The chance that the right answer to another prompt is right for this one too.

    None is what a reader finds in an image that it can't read; it is no answer and never right.
    """
    n = len(answers)
    counts = Counter(answer for answer in answers if answer is not None)
    same = sum(count * (count - 1) for count in counts.values())
    return same / (n * (n - 1)) if n > 1 else 0.0


def of_a_hit(relevant: int, documents: int, k: int) -> float:
    """The chance that `k` of the `documents`, drawn blindly, hold one of the `relevant` ones; where
    there are fewer than `k`, all are drawn.
    """
    k = min(k, documents)
    return 1 - math.comb(documents - relevant, k) / math.comb(documents, k)
