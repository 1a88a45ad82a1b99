"""How many ids of a sample a pass reads, where the user leaves the choice: what pays here.

A pass over more ids takes longer, by how much depends on the machine and on the rows beside; how
many of its guesses are right depends on the model and the prompt. The first is timed once for each
program, the second is counted all along.
"""

from collections.abc import Callable, Hashable, Mapping

import numpy as np

from cm3jax.config.decoding import AUTO
from cm3jax.shapes import Int

WINDOWS = (1, 2, 4, 8, 16)
"""Those that are timed."""
_TIMED = 5
"""Chunks of each window that are timed."""
_USUAL, _WEIGHT = 0.7, 20.0
"""How often guesses are right before any was made, and the number of guesses that this weighs."""
_KEPT = 0.9
"""What the guesses of a chunk still count after another chunk with guesses."""
_KEPT_IDLE = 0.99
"""The same after a chunk without guesses: after some hundred of them guesses are tried again."""
_GAIN = 1.2
"""How many times the speed without guesses a window has to promise."""


class Pace:
    """Chooses the window of each chunk."""

    def __init__(self, seconds: Mapping[int, float]):
        """`seconds` are those of a pass, by window."""
        self._seconds = dict(seconds)
        self._right = self._wrong = 0.0

    @property
    def window(self) -> int:
        """The window that emits most ids in a second, as far as is known."""
        return max(self._seconds, key=self._rate)

    @property
    def ever_guesses(self) -> bool:
        """Whether guesses that are right as often as usual pay; where not, none is ever made."""
        return Pace(self._seconds).window > 1

    def saw(self, emitted: Int[np.ndarray, "passes B"], window: int) -> None:
        """Count the guesses of a chunk by how many ids each pass emitted, 0 of samples that are
        done."""
        kept = _KEPT if window > 1 else _KEPT_IDLE
        self._right = kept * self._right + int(np.maximum(emitted - 1, 0).sum())
        self._wrong = kept * self._wrong + int(((emitted > 0) & (emitted < window)).sum())

    def _rate(self, window: int) -> float:
        """Ids per second, if each guess is right as often as any other; with guesses, as many as
        are sure to be gained."""
        right = self._right + _USUAL * _WEIGHT
        share = right / (right + self._wrong + (1 - _USUAL) * _WEIGHT)
        ids = sum(share**place for place in range(window))
        return ids / self._seconds[window] / (_GAIN if window > 1 else 1)


_MEASURED: dict[Hashable, Pace] = {}
"""By program: of this process, whose prompts are often alike."""


def pace_of(
    asked: int, program: Hashable, timed: Callable[[int], float], shared: bool = False
) -> Pace:
    """The pace for the window that was `asked` for.

    For `AUTO`, passes over each window are timed, once in a process for each `program`: `timed`
    runs some and returns the seconds of one. Processes that have `shared` out the rows must run
    the same programs, and what each would time differs: `AUTO` guesses nothing there.
    """
    if asked != AUTO or shared:
        return Pace({max(1, asked): 1.0})
    if program not in _MEASURED:
        _MEASURED[program] = Pace(_seconds(timed))
    return _MEASURED[program]


def _seconds(timed: Callable[[int], float]) -> dict[int, float]:
    """Seconds of a pass by window, those of the fastest chunk; windows take turns, so that
    whatever else runs slows them alike."""
    for window in WINDOWS:
        timed(window)  # compiles it
    rounds = [[timed(window) for window in WINDOWS] for _ in range(_TIMED)]
    return {window: min(each) for window, *each in zip(WINDOWS, *rounds, strict=True)}
