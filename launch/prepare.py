"""Prepare an experiment's data (tokens, memory bank, neighbours), or show a training row.

python -m launch.prepare miniature/decoder
python -m launch.prepare miniature/decoder --data.source PHOTOS --data.licences CC0-1.0 CC-BY-4.0
python -m launch.prepare miniature/decoder --runner DirectRunner --workers 4
python -m launch.prepare miniature/sft
python -m launch.prepare show miniature/decoder --record 12
"""

import dataclasses

from cm3jax.config import Experiment
from cm3jax.data.cm3_rows import RowsConfig
from cm3jax.data.pipeline import CorpusStream
from cm3jax.data.prepare import prepare
from cm3jax.data.prepare_tasks import prepare_tasks
from cm3jax.data.runners import Beam, Engine, InProcess
from cm3jax.data.show import show_row
from cm3jax.data.tokenize import Tools
from cm3jax.errors import UserError
from cm3jax.learners import vqgan
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from launch.cli import parse_experiment_and
from launch.env import main
from launch.parts import (
    TOKENIZERS,
    naming_commands,
    require_corpus_read,
    require_made,
    require_parts_named,
)
from launch.tools import make_tools

_DESCRIPTION = (
    "Turn raw pairs into a tokenised corpus and a memory bank, or the data sets of data.tasks into "
    "corpora of instruction tuning; what was interrupted continues. "
    "`show EXPERIMENT --record N` draws the training row that holds a record."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the work is done, and what it costs."""

    runner: str = ""
    """A runner of Apache Beam, e.g. DirectRunner or DataflowRunner; empty prepares in this process.
    The corpus is the same, byte for byte."""
    workers: int = 1
    """Processes of a DirectRunner."""
    beam: tuple[str, ...] = ()
    """Further options of the runner, as NAME=VALUE."""
    hourly_price: float = 0.0
    """Price of an hour of this machine, for the estimate of what a million pairs cost."""

    def __post_init__(self):
        if self.workers < 1:
            raise UserError(f"--workers {self.workers} must be at least 1.")
        if not self.runner and (self.workers > 1 or self.beam):
            raise UserError("--workers and --beam need a --runner, e.g. DirectRunner.")


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """The option of `show`, for `--help`: `_take_record` reads it."""

    record: int = 0
    """Number of the record of the training corpus whose row is shown."""


def run(argv: list[str]) -> None:
    """Prepare, or show a row when the first argument is `show`."""
    if argv[:1] == ["show"]:
        record, rest = _take_record(argv[1:])
        experiment, _ = parse_experiment_and(ShowOptions, rest, _DESCRIPTION, "show")
        require_corpus_read(experiment)
        with naming_commands(experiment, True):
            print(show(experiment, record), end="")
        return
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION)
    with naming_commands(experiment):
        _prepare(experiment, options)


def _prepare(experiment: Experiment, options: Options) -> None:
    if experiment.data.tasks:
        require_parts_named(experiment, TOKENIZERS)
        require_made(experiment, TOKENIZERS)
        tokenizers = experiment.tokenizers
        text, image = TextTokenizer.load(tokenizers.text), vqgan.load(tokenizers.image)
        prepare_tasks(experiment, text, image, _say)
        return
    tools = make_tools(experiment)
    engine = make_engine(options, tools)
    prepare(experiment, tools, _say, engine, options.hourly_price)


def make_engine(options: Options, tools: Tools) -> Engine:
    """The engine that makes the shards; `UserError` if it needs Beam, which is not installed."""
    if not options.runner:
        return InProcess(tools)
    given = [f"--runner={options.runner}", *(f"--{option}" for option in options.beam)]
    if options.workers > 1:
        given.append(f"--direct_num_workers={options.workers}")
        given.append("--direct_running_mode=multi_processing")
    return Beam(make_tools, given)


def _say(line: str) -> None:
    print(line, flush=True)


def show(experiment: Experiment, record: int) -> str:
    """The row of the first epoch that holds a record of the training corpus, as text.

    Of a mixture, its first corpus.
    """
    rows = RowsConfig.of(experiment)
    stream = CorpusStream.open(experiment.data, experiment.vocab, rows, "train")
    return show_row(stream.corpora[0], record, TextTokenizer.load(experiment.tokenizers.text))


def _take_record(argv: list[str]) -> tuple[int, list[str]]:
    """The value of `--record` (0 without it) and the other arguments."""
    if "--record" not in argv:
        return 0, argv
    place = argv.index("--record")
    value = argv[place + 1] if place + 1 < len(argv) else ""
    if not value.isdecimal():
        raise UserError(f"--record takes the number of a record, not {value!r}.")
    return int(value), argv[:place] + argv[place + 2 :]


if __name__ == "__main__":
    main(run)
