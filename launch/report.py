"""Rebuild a run's report from what its evaluations stored.

    python -m launch.report [RUN]

Reads `RUN/metrics.json` and `RUN/results/*.json`, writes `RUN/report.html`; computes nothing.
"""

import dataclasses

import tyro
from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate.page import report
from cm3jax.evaluate.results import Evaluation
from cm3jax.files import read_json, write_atomic
from launch.cli import parse
from launch.env import main

MODELS = ("shipped", "trained_here")
"""Whose results a report may show, in its order."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to report on."""

    run: tyro.conf.Positional[str] = "runs/quickstart"
    """Directory with `metrics.json` and `results/`, as the quickstart leaves it."""


def stored(run: epath.PathLike) -> dict[str, Evaluation]:
    """The evaluations that lie in a run directory, by model."""
    paths = {model: epath.Path(run) / "results" / f"{model}.json" for model in MODELS}
    return {model: Evaluation.load(path) for model, path in paths.items() if path.exists()}


def write_report(run: epath.PathLike) -> epath.Path:
    """Write `report.html` and return its path; `UserError` when nothing was evaluated yet."""
    run = epath.Path(run)
    metrics = read_json(run / "metrics.json", "the run's metrics")
    evaluations = stored(run)
    if not evaluations:
        raise UserError(f"{run}/results holds no evaluation; run launch/quickstart.sh first.")
    path = run / "report.html"
    write_atomic(path, report(evaluations, metrics))
    return path


def command(argv: list[str]) -> None:
    """Parse the arguments and write the report."""
    options = parse(Options, argv, "Rebuild report.html from stored results.")
    print(f"wrote {write_report(options.run)}")


if __name__ == "__main__":
    main(command)
