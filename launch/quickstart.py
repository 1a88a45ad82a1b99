"""The whole path in miniature: from raw pairs to a report with images, in about six minutes.

    python -m launch.quickstart       # bash launch/quickstart.sh makes the environment first
    python -m launch.quickstart --scale 0.02 --workdir runs/try --data data/try

Trains every member of `experiments/quickstart.py` in turn, then draws, captions and infills with
the model just trained and with the shipped weights, and writes `report.html` and `metrics.json`.
Work is counted in steps and records, never by the clock, so two machines get the same figures.
What is finished is reused; what was interrupted continues.
"""

import dataclasses
import platform
import time

import flax
import jax
import orbax.checkpoint
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import Experiment
from cm3jax.data.prepare import is_prepared, prepare, prepare_bank, standing_bank
from cm3jax.data.shard_jobs import SplitJob
from cm3jax.data.sources import open_source
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import code_version, scores_to_json
from cm3jax.evaluate.results import Evaluation
from cm3jax.io.experiment_json import read_as
from cm3jax.io.files import sweep_scratch, write_atomic, write_json
from cm3jax.io.folders import hold
from cm3jax.io.paths import require_folder
from experiments.miniature.scores.emblem_scores import evaluate, is_current
from experiments.quickstart import chain
from launch.cli import parse
from launch.env import main
from launch.report import require_replaceable_report, stored, write_report
from launch.shipped import SHIPPED
from launch.stages import Stage, run_stages, training
from launch.tools import make_tools

HEADLINES = (
    "heldout_emblem_accuracy.docs_0",
    "heldout_emblem_accuracy.docs_2",
    "heldout_pair_accuracy.docs_2",
    "scene_accuracy",
    "caption_exact",
    "infill_exact",
)
"""What is printed at the end; the report has everything."""

TIMINGS = "results/seconds.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the quickstart works, and how much of it it does."""

    workdir: str = "runs/quickstart"
    """Directory of the runs, the results and the report."""
    data: str = "data"
    """Directory of prepared data, with the folders `quickstart` and `shipped`."""
    scale: float = 1.0
    """Share of steps, records and prompts: 0.02 shows in a minute or two that all parts work."""

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise UserError(f"--scale {self.scale} is a share of the whole; give 0 to 1.")

    def count(self, full: int, least: int) -> int:
        """`full` at this scale."""
        return max(least, round(full * self.scale))

    def seconds(self, full: int) -> int:
        """What a stage takes at this scale; at scale 1 it takes `full` seconds, some 10 of which
        compile."""
        return round(10 + (full - 10) * self.scale)


def located(options: Options) -> dict[str, Experiment]:
    """The members of the chain, in `options`' directories and at its scale."""
    runs, data = epath.Path(options.workdir), epath.Path(options.data) / "quickstart"
    return {part: _located(part, member, options, runs, data) for part, member in chain().items()}


def _located(
    part: str, member: Experiment, options: Options, runs: epath.Path, data: epath.Path
) -> Experiment:
    replace, train = dataclasses.replace, member.train
    steps = options.count(train.steps, 1)
    return replace(
        member,
        workdir=str(runs / part),
        tokenizers=replace(member.tokenizers, text=str(runs / "text"), image=str(runs / "vqgan")),
        retrieval=replace(member.retrieval, encoder=str(runs / "clip")),
        data=replace(
            member.data,
            raw=str(epath.Path(options.data) / "raw"),
            records=options.count(member.data.records, 400),
            corpus=str(data / "corpus"),
            bank=str(data / "bank"),
        ),
        train=replace(train, steps=steps, log_every=min(train.log_every, steps)),
    )


def stages(options: Options) -> list[Stage]:
    """What the quickstart does, in order."""
    members = located(options)
    decoder = members["decoder"]
    train = {
        part: training(member, options.seconds(seconds))
        for (part, member), seconds in zip(members.items(), (10, 60, 90, 140), strict=True)
    }
    prepared = Stage(
        "corpus, bank and index",
        70,
        decoder.data.corpus,
        lambda: is_prepared(decoder, make_tools(decoder)),
        lambda: prepare(decoder, make_tools(decoder), _say),
    )
    return [
        _raw(decoder),
        train["text"],
        train["vqgan"],
        train["clip"],
        prepared,
        train["decoder"],
        _evaluation("trained_here", decoder.run_dir, decoder.data.bank, options),
        *_shipped(decoder, options),
    ]


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def _raw(member: Experiment) -> Stage:
    """The raw pairs, which every later stage reads."""
    raw = epath.Path(member.data.raw)
    mark = raw / f"emblems-{member.data.records}.done"

    def generate() -> None:
        open_source(member.data, "train", member.seed, _count)
        write_atomic(mark, "")

    return Stage("raw pairs", 25, str(raw), mark.exists, generate)


def _count(done: int, total: int) -> None:
    if done % 4000 == 0 or done == total:
        _say(f"{done} of {total} documents")


def _evaluation(model: str, run: str, bank: str, options: Options) -> Stage:
    """Evaluate a decoder; a result of other weights or of other code does not count."""
    path = epath.Path(options.workdir) / "results" / f"{model}.json"
    count = options.count(200, 4)

    def done() -> bool:
        return path.exists() and is_current(Evaluation.load(path), run, count)

    def run_it() -> None:
        evaluate(run, bank, count, say=_say, keep=path.with_suffix(".samples")).save(path)

    budget = options.seconds(60)
    return Stage(f"evaluate {model.replace('_', ' ')}", budget, str(path), done, run_it)


def _shipped(decoder: Experiment, options: Options) -> list[Stage]:
    """The stages of the shipped weights, whose tokenizers and encoder need a bank of their own."""
    run = SHIPPED / "decoder"
    if not (run / "params.safetensors").exists():
        print(f"no shipped weights in {run}: only the model trained here is evaluated.")
        return []
    bank = epath.Path(options.data) / "shipped" / "bank"
    experiment = load_run(run).experiment
    experiment = dataclasses.replace(
        experiment,
        tokenizers=dataclasses.replace(
            experiment.tokenizers, text=str(SHIPPED / "text"), image=str(SHIPPED / "vqgan")
        ),
        retrieval=dataclasses.replace(experiment.retrieval, encoder=str(SHIPPED / "clip")),
        # The bank does not depend on the number of training pairs.
        data=dataclasses.replace(decoder.data, bank=str(bank)),
    )
    bank_job = SplitJob(experiment, "bank")

    def make_bank() -> None:
        prepare_bank(bank_job, make_tools(experiment), _say)

    banked = Stage(
        "bank of the shipped weights",
        20,
        str(bank),
        lambda: standing_bank(bank_job, make_tools(experiment)) is not None,
        make_bank,
    )
    return [banked, _evaluation("shipped", str(run), str(bank), options)]


def _sweep(workdir: epath.Path) -> None:
    """Delete the halves of files that a killed quickstart left."""
    sweep_scratch(workdir, r"metrics\.json|report\.html")
    sweep_scratch(workdir / "results", r"\w+\.json")
    for samples in workdir.glob("results/*.samples"):
        sweep_scratch(samples, r"[0-9a-f]{16}\.json")


def write_metrics(workdir: epath.PathLike) -> epath.Path:
    """Write `metrics.json` from the stored evaluations and timings, and return its path."""
    root = epath.Path(workdir)
    evaluations = stored(root)
    metrics = {model: scores_to_json(result.scores) for model, result in evaluations.items()}
    metrics |= {
        "weights": {model: result.weights for model, result in evaluations.items()},
        "pictures": {model: result.pictures for model, result in evaluations.items()},
        "seconds": read_as(dict[str, float], root / TIMINGS, "the timings"),
        "versions": {
            "cm3jax": code_version(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "orbax": orbax.checkpoint.__version__,
        },
    }
    path = root / "metrics.json"
    write_json(path, metrics)
    return path


def command(argv: list[str]) -> None:
    """Parse the arguments, run every stage, write metrics and report, and say what came of it."""
    options = parse(Options, argv, "Go the whole path in miniature, from raw pairs to a report.")
    start = time.perf_counter()
    require_folder(options.workdir, "the quickstart")
    require_replaceable_report(options.workdir)
    # Both models run the same programs, and so does a second run: keep also what compiles fast.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    with hold(options.workdir, "the quickstart"):
        _sweep(epath.Path(options.workdir))
        run_stages(stages(options), epath.Path(options.workdir) / TIMINGS)
    metrics = write_metrics(options.workdir)
    page = write_report(options.workdir)
    for model, result in stored(options.workdir).items():
        for name in HEADLINES:
            print(f"{model}.{name}: {result.scores[name].value:.3f}")
    seconds = time.perf_counter() - start
    print(f"done in {seconds:.0f} s; figures in {metrics}, images in {page}")


if __name__ == "__main__":
    main(command)
