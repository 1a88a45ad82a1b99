"""The paper's claims compared with what this code measured; or a run's own report.

    python -m launch.report                 # the page of claims, from stored results
    python -m launch.report --rerun ROW     # measure one claim again, then the page; one that
                                            # compares models trains them first
    python -m launch.report RUN             # RUN/report.html, as the quickstart makes it

Without `--rerun` it computes nothing: claims come from `experiments/claims/results/`, a run's
report from its `metrics.json` and `results/`.
"""

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from etils import epath

from cm3jax.config import Experiment
from cm3jax.data.prepare import is_prepared, prepare
from cm3jax.errors import UserError
from cm3jax.evaluate.results import Evaluation
from cm3jax.io.experiment_json import read_as
from cm3jax.io.files import require_replaceable, sweep_scratch, write_atomic, write_json
from cm3jax.io.folders import Held, delete, hold
from cm3jax.io.paths import files_below, matching
from cm3jax.io.typed_json import read_fields
from cm3jax.presets import load_experiment
from cm3jax.report.html import is_titled
from cm3jax.retrieval.pages import blank_written
from experiments.claims import (
    bank_swap,
    control,
    documents,
    guidance_scale,
    masking,
    retrieval_quality,
    rivals,
    sampling_methods,
    sizes,
    task_tuning,
)
from experiments.claims.claim import Result, Row
from experiments.claims.claims_page import verdict, write_page
from experiments.claims.harness import Bench
from experiments.miniature.scores.quickstart_page import TITLE, report
from launch.cli import parse
from launch.env import main
from launch.tools import make_tools
from launch.train import train_experiment

ROWS: tuple[Row, ...] = (
    control.ROW,
    documents.ROW,
    rivals.ROW,
    sizes.ROW,
    sampling_methods.ROW,
    guidance_scale.ROW,
    masking.ROW,
    task_tuning.ROW,
    bank_swap.ROW,
    retrieval_quality.ROW,
)
"""The claims, in the page's order."""

MINIATURE = Path(__file__).resolve().parent.parent / "experiments" / "miniature"
RESULTS = MINIATURE.parent / "claims" / "results"

MODELS = ("shipped", "trained_here")
"""The models whose results a run's report may show, in its order."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to report on."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """Directory with `metrics.json` and `results/`, as the quickstart leaves it; without one the
    page of the paper's claims is made."""
    rerun: str = ""
    """The claim to measure again: control, documents, rivals, sizes, sampling, guidance, masking,
    tasks, bank_swap or retrieval. If killed, the same command continues."""
    out: str = "runs/report"
    """Directory of the page of claims and of the samples of a measurement."""
    data: str = "data"
    """Directory of prepared data, with the memory banks."""
    runs: str = "runs"
    """Directory of the models that a claim compares."""

    def __post_init__(self):
        names = [row.name for row in ROWS]
        if self.rerun and self.rerun not in names:
            raise UserError(f"there is no claim {self.rerun!r}; the claims are {', '.join(names)}.")
        if self.rerun and self.run:
            raise UserError("--rerun measures a claim and takes no run; leave one of them out.")


def stored(run: epath.PathLike) -> dict[str, Evaluation]:
    """The evaluations in a run directory, by model."""
    paths = {model: epath.Path(run) / "results" / f"{model}.json" for model in MODELS}
    return {model: Evaluation.load(path) for model, path in paths.items() if path.exists()}


def write_report(run: epath.PathLike) -> epath.Path:
    """Write `report.html` and return its path; `UserError` when nothing was evaluated yet, and
    rather than replace a page of another kind, such as a training's."""
    run = epath.Path(run)
    require_replaceable_report(run)
    fields = {"seconds": dict[str, float], "versions": dict[str, str]}
    remedy = "run bash launch/quickstart.sh"
    metrics = read_fields(run / "metrics.json", fields, "the run's metrics", remedy)
    evaluations = stored(run)
    if not evaluations:
        raise UserError(f"{run}/results holds no evaluation; run bash launch/quickstart.sh first.")
    path = run / "report.html"
    with _swept(run, r"report\.html"):
        write_atomic(path, report(evaluations, metrics))
    blank_written(path, [one.bank for one in evaluations.values()])
    return path


@contextlib.contextmanager
def _swept(folder: epath.PathLike, names: str) -> Iterator[None]:
    """Write in a folder without the halves of files that killed processes left: what is written
    meanwhile nobody else takes for one. Where somebody else writes, nothing is deleted."""
    with contextlib.ExitStack() as alone:
        with contextlib.suppress(Held):
            alone.enter_context(hold(folder, "writing a page"))
            sweep_scratch(folder, names)
        yield


def require_replaceable_report(run: epath.PathLike) -> None:
    """Raise `UserError` if the report would replace another page."""
    ours = functools.partial(is_titled, title=TITLE)
    require_replaceable(epath.Path(run) / "report.html", ours, "the report")


def trainings(row: Row, options: Options) -> list[Experiment]:
    """What the models of a claim are trained by, in `options`' directories."""
    runs, data = epath.Path(options.runs), epath.Path(options.data)
    experiments = []
    for name in row.trains:
        experiment = load_experiment(name)
        home = data / epath.Path(experiment.data.corpus).parent.name
        replaced = {"raw": data / "raw", "corpus": home / "corpus", "bank": home / "bank"}
        where: dict[str, Any] = {field: str(path) for field, path in replaced.items()}
        moved = dataclasses.replace(experiment.data, **where)
        experiments.append(dataclasses.replace(experiment, workdir=str(runs / name), data=moved))
    return experiments


def train_models(experiments: Sequence[Experiment], say: Callable[[str], None]) -> None:
    """Prepare the data of a claim's models and train them; what is done is not done again.

    Raises `UserError` when a training returns unfinished, as one does that was told to stop, and
    when it was told so too late.
    """
    for experiment in experiments:
        tools = make_tools(experiment)
        if not is_prepared(experiment, tools):
            prepare(experiment, tools, say)
        stopped = train_experiment(experiment)
        end = epath.Path(experiment.run_dir) / "checkpoints" / str(experiment.train.steps)
        if not end.exists():
            raise UserError(f"{experiment.name} stopped before its end; give the command again.")
        say(f"{experiment.name}: trained")
        if stopped:
            raise UserError(f"stopped on request after {experiment.name}; give the command again.")


def measure(row: Row, options: Options, results: epath.PathLike = RESULTS, **size: int) -> Result:
    """Measure a claim and store the result; `size` makes the bench's seeds and prompts fewer.

    What was drawn before a kill is not drawn again, and its time counts.
    """
    keep = epath.Path(options.out) / "samples" / row.name
    with hold(keep, f"measuring the claim {row.name}"):
        sweep_scratch(keep, r"([0-9a-f]{16}|seconds)\.json")
        return _measure(row, options, keep, results, **size)


def _measure(
    row: Row, options: Options, keep: epath.Path, results: epath.PathLike, **size: int
) -> Result:
    spent = keep / "seconds.json"
    known = read_as(dict[str, float], spent, "the time spent") if spent.exists() else {}
    before = known.get("seconds", 0.0)
    start = time.perf_counter()

    def seconds() -> float:
        return before + time.perf_counter() - start

    def say(line: str) -> None:
        write_json(spent, {"seconds": seconds()})
        print(f"  {seconds():5.0f} s  {line}", flush=True)

    already = f", {before:.0f} s of it done" if before else ""
    print(f"{row.name}: about {row.seconds / 60:.0f} minutes on two CPU cores{already}", flush=True)
    train_models(trainings(row, options), say)
    bench = Bench(MINIATURE / "weights", options.data, keep, say, runs=options.runs, **size)
    result = Result.of(row, bench, row.measure(bench), seconds())
    stored = epath.Path(results) / f"{row.name}.json"
    result.save(stored)
    blank_written(stored, _banks(options))
    delete(keep, _kept)  # or the next time nothing would be measured
    return result


def _banks(options: Options) -> list[epath.Path]:
    """The memory banks whose documents the claims' results may show."""
    return [path.parent for path in matching(options.data, "*/bank*/manifest.json")]


def _kept(folder: epath.Path) -> list[str] | None:
    """The files of a measurement, journals of samples and the time spent; None without any."""
    names = sorted(files_below(folder))
    return [n for n in names if re.fullmatch(r"(.*/)?([0-9a-f]{16}|seconds)\.json", n)] or None


def command(argv: list[str]) -> None:
    """Parse the arguments and write what is asked for."""
    options = parse(
        Options,
        argv,
        "Make the page of the paper's claims and what was measured, or a run's report.",
    )
    if options.run:
        print(f"wrote {write_report(options.run)}")
        return
    for row in ROWS:
        if row.name == options.rerun:
            print(f"{row.name}: reproduced: {verdict(row, measure(row, options))}")
    data = epath.Path(options.out) / "data"
    with _swept(options.out, r"index\.html"), _swept(data, r"[\w-]+\.(json|csv)"):
        page = write_page(options.out, ROWS, RESULTS, _banks(options))
    print(f"wrote {page}")


if __name__ == "__main__":
    main(command)
