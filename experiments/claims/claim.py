"""A claim and its measurement, and the file that keeps what came of it."""

import dataclasses
import platform
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import Score, code_version, scores_from_json, scores_to_json
from cm3jax.evaluate.results import Figure
from cm3jax.io.files import read_json, write_json
from cm3jax.report.plots import Plot
from cm3jax.training import hardware
from experiments.claims.harness import Bench

Scores = Mapping[str, Score]
"""By dotted name."""


def above_chance(score: Score) -> bool:
    """Whether a score's interval is above what guessing is worth, which must be known."""
    return score.chance is not None and score.interval[0] > score.chance


def percent(share: Score) -> str:
    """A share with its interval, for a table."""
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%}–{high:.1%})"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as the paper has it, in words and figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a measurement found."""

    scores: dict[str, Score]
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclasses.dataclass(frozen=True)
class Target:
    """What must be seen before a claim counts as reproduced."""

    what: str
    holds: Callable[[Scores], bool]


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim of the paper."""

    name: str
    """The name of its result file, and on the command line."""
    title: str
    claim: str
    """What the paper says, with its figures."""
    source: str
    how: str
    """How it is measured here."""
    seconds: int
    """Time that the measurement takes on two CPU cores."""
    measure: Callable[[Bench], Measured]
    """Measures it; what `Bench.keep` holds is not made again."""
    headline: Callable[[Scores], str]
    """What was measured, in a line."""
    targets: tuple[Target, ...]
    trains: tuple[str, ...] = ()
    """Experiments whose models it measures; they are trained first."""
    remark: str = ""
    """On what came of it: the likely reason of what does not hold."""

    @property
    def command(self) -> str:
        """What measures it."""
        return f"python -m launch.report --rerun {self.name}"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a row's file holds."""

    measured: Measured
    command: str
    hardware: str
    """The devices that computed, in words."""
    seconds: float
    """Time spent, that of killed attempts included."""
    versions: dict[str, str]
    weights: dict[str, str]
    """Fingerprints, by part."""

    @classmethod
    def of(cls, row: Row, bench: Bench, measured: Measured, seconds: float) -> "Result":
        """What was measured here and now."""
        versions = {
            "cm3jax": code_version(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
        }
        own = {name: bench.trained(name).weights["decoder"] for name in row.trains}
        shared = {part: mark for part, mark in bench.weights.items() if part != "decoder"}
        weights = shared | own if own else bench.weights
        where = hardware.in_words()
        return cls(measured, row.command, where, round(seconds, 1), versions, weights)

    def save(self, path: epath.PathLike) -> None:
        """Write the file, atomically."""
        plain = dataclasses.asdict(
            dataclasses.replace(self, measured=dataclasses.replace(self.measured, scores={}))
        )
        plain["measured"]["scores"] = scores_to_json(self.measured.scores)
        write_json(path, plain)

    @classmethod
    def load(cls, path: epath.PathLike) -> "Result":
        """Read the file; `UserError` when it is missing, damaged or of another form."""
        plain: dict[str, Any] = read_json(path, "the claim's result")
        try:
            found = plain.pop("measured")
            measured = Measured(
                scores=scores_from_json(found["scores"]),
                plots=tuple(map(Plot.from_json, found["plots"])),
                tables=tuple(
                    Table(t["title"], tuple(t["columns"]), tuple(map(tuple, t["rows"])))
                    for t in found["tables"]
                ),
                figures=tuple(map(Figure.from_json, found["figures"])),
            )
            return cls(measured, **plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is not a claim's result ({error!r}); measure it again."
            ) from None
