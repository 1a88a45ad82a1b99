"""What an evaluation leaves behind: scores, the images that show them, and where they came from.

Stored as one JSON file, from which `metrics.json` and the report are rebuilt in a moment.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import Score, scores_from_json, scores_to_json
from cm3jax.io.files import read_json, write_json
from cm3jax.report.html import png_uri
from cm3jax.retrieval.pages import GONE, blank_written
from cm3jax.shapes import Float, UInt8


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image or text of a figure."""

    label: str
    """What it is: `retrieved, 0.91`, `2 documents`, …"""
    picture: str | None = None
    """A PNG as `data:` URI."""
    text: str = ""
    correct: bool | None = None
    """The reader's verdict; None where there is nothing to judge."""
    document: str = ""
    """Mark of the bank's document that it shows (`bank_files.mark_of`); a takedown blanks it."""

    @classmethod
    def of(
        cls,
        label: str,
        image: UInt8[np.ndarray, "Y X 3"] | None,
        text: str = "",
        correct: bool | None = None,
        document: str = "",
    ) -> "Cell":
        """A cell from pixels."""
        return cls(label, None if image is None else png_uri(image), text, correct, document)

    def blanked(self) -> "Cell":
        """The cell of a document that is taken out of the bank."""
        return Cell(GONE, document=self.document)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One prompt and everything that came of it, side by side."""

    kind: str
    """What it illustrates: a score without its last part, `heldout_emblem_accuracy`, or a title."""
    prompt: str
    cells: tuple[Cell, ...]
    note: str = ""
    """How this and its neighbours of a kind were chosen among all cases."""

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Figure":
        """From `dataclasses.asdict`; `KeyError` or `TypeError` for another form."""
        return cls(**{**plain, "cells": tuple(Cell(**cell) for cell in plain["cells"])})


def worst_and_best(
    values: Sequence[float | bool] | Float[np.ndarray, " B"], most: int
) -> tuple[list[int], list[int]]:
    """Places of the lowest and of the highest values, extremes first, equal ones in order: `most`
    of each, or half of all values where there are fewer.
    """
    order = np.argsort(values, kind="stable").tolist()
    count = min(most, len(order) // 2)
    return order[:count], sorted(order[count:], key=lambda place: -values[place])[:count]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The few cases that a page shows."""

    places: list[int]
    """The worst first, then the best."""
    note: str
    """How they were chosen, for the reader of the page."""

    @classmethod
    def of(cls, values: Sequence[float | bool] | Float[np.ndarray, " B"], most: int) -> "Chosen":
        """The `worst_and_best` of these values."""
        worst, best = worst_and_best(values, most)
        shown = f"the {len(worst)} worst and then the {len(best)} best of {len(values):,} cases"
        return cls(worst + best, f"Not a sample: {shown}; the scores count all of them.")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's scores."""

    run: str
    """Run directory of the decoder."""
    scores: dict[str, Score]
    """By dotted name."""
    figures: tuple[Figure, ...]
    losses: dict[str, list[tuple[int, float]]]
    """(step, loss) of its training, by name in `metrics.jsonl`; empty where none came along."""
    weights: dict[str, str]
    """Fingerprints of the weights, by part."""
    pictures: str
    """Fingerprint of every image made."""
    seconds: float
    bank: str = ""
    """The memory bank whose documents the figures show; earlier versions did not say."""

    def save(self, path: epath.PathLike) -> None:
        """Write the file, atomically, without what was taken out of the bank meanwhile."""
        plain = dataclasses.asdict(dataclasses.replace(self, scores={}))
        write_json(path, plain | {"scores": scores_to_json(self.scores)})
        blank_written(path, [self.bank])

    @classmethod
    def load(cls, path: epath.PathLike) -> "Evaluation":
        """Read the file; `UserError` when it is missing, damaged or of another form."""
        plain: dict[str, Any] = read_json(path, "the evaluation's result")
        try:
            figures = tuple(map(Figure.from_json, plain.pop("figures")))
            scores = scores_from_json(plain.pop("scores"))
            losses = {
                name: [(step, value) for step, value in points]
                for name, points in plain.pop("losses").items()
            }
            return cls(scores=scores, figures=figures, losses=losses, **plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is not an evaluation's result ({error!r}); make it again."
            ) from None
