"""Score a trained model under a stated protocol, or say why two results differ.

    python -m launch.evaluate emblems --run runs/quickstart/decoder --out scores.json
    python -m launch.evaluate retrieval --run runs/quickstart/clip
    python -m launch.evaluate tasks --run runs/miniature/sft
    python -m launch.evaluate diff a.json b.json

`diff` reads what `--out` wrote and the quickstart's `metrics.json`.
"""

import dataclasses
from typing import Annotated

import tyro

from cm3jax.errors import UserError
from cm3jax.evaluate.emblems import evaluate
from cm3jax.evaluate.protocol import Score, differences, scores_from_json, scores_to_json
from cm3jax.evaluate.retrieval import evaluate_encoder
from cm3jax.evaluate.tasks import NAMES, evaluate_tasks
from cm3jax.files import read_json, write_json
from launch.cli import parse
from launch.env import main


@dataclasses.dataclass(frozen=True)
class Emblems:
    """What a decoder of the miniature can do, in exact shares."""

    run: str
    """Run directory of a decoder, or weights exported from one."""
    bank: str = ""
    """Memory bank to retrieve from, instead of the one in the run's config."""
    prompts: int = 200
    """Prompts of each kind."""
    seed: int = 0
    """Seed of the sampling."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How often a retrieval encoder of the miniature finds an emblem that it never saw."""

    run: str
    """Run directory of a CLIP encoder, or weights exported from one."""
    prompts: int = 200
    """Prompts that name one emblem."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Tasks:
    """What a decoder of the miniature does after instruction tuning, on held-out cases."""

    run: str
    """Run directory of a decoder, or weights exported from one."""
    before: str = ""
    """The decoder before tuning, to score beside it."""
    tasks: tuple[str, ...] = NAMES
    """Which tasks."""
    cases: int = 200
    """Cases of each task."""
    seed: int = 0
    """Seed of the sampling."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Diff:
    """Why two results differ: protocols first, then figures."""

    left: tyro.conf.Positional[str]
    """A result."""
    right: tyro.conf.Positional[str]
    """Another one."""


Options = (
    Annotated[Emblems, tyro.conf.subcommand("emblems")]
    | Annotated[Retrieval, tyro.conf.subcommand("retrieval")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
)


def run(argv: list[str]) -> None:
    """Evaluate, print a table and write the JSON; or compare two."""
    options = parse(Options, argv, "Scores with their protocols.")
    match options:
        case Diff():
            print(compare(_scores(options.left), _scores(options.right)))
            return
        case Retrieval():
            scores = evaluate_encoder(options.run, options.prompts)
        case Tasks():
            which = (options.tasks, options.cases, options.seed)
            scores = evaluate_tasks(options.run, options.before, *which, _say)
        case Emblems():
            scores = evaluate(options.run, options.bank, options.prompts, options.seed, _say).scores
    print(table(scores))
    if options.out:
        write_json(options.out, scores_to_json(scores))


def _say(line: str) -> None:
    print(line, flush=True)


def _scores(path: str) -> dict[str, Score]:
    scores = scores_from_json(read_json(path, "the result"))
    if not scores:
        raise UserError(f"{path} holds no scores; give a file that launch.evaluate wrote.")
    return scores


def table(scores: dict[str, Score]) -> str:
    """One line per score: value, 95 % interval, n, chance, and what it may be called."""
    width = max(map(len, scores))
    lines = [f"{'score':{width}}   value        95 %    n   chance  protocol"]
    for name, score in scores.items():
        low, high = score.interval
        lines.append(
            f"{name:{width}}  {score.value:6.3f} {low:.3f}–{high:.3f} {score.n:4d} "
            f"{score.chance:8.1e}  {score.protocol.regime}; documents: {score.protocol.documents}"
        )
    return "\n".join(lines)


def compare(left: dict[str, Score], right: dict[str, Score]) -> str:
    """What differs, in words: equal differences of several scores on one line."""
    found = differences(left, right)
    if not found:
        return "no difference: same protocols, same figures."
    lines = []
    for of_protocol, title in ((True, "protocols differ in"), (False, "figures differ")):
        mine = [difference for difference in found if difference.of_protocol == of_protocol]
        groups: dict[tuple, list[str]] = {}
        for one in mine:
            groups.setdefault((one.what, one.left, one.right), []).append(one.score)
        if groups:
            lines.append(f"{title}:")
        for (what, a, b), names in groups.items():
            every = len(names) == len(left.keys() | right.keys())
            whose = "every score" if every else ", ".join(names)
            lines.append(f"  {what}: {a} | {b}   ({whose})")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run)
