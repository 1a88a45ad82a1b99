"""Prepare an experiment's data (tokens, memory bank, neighbours), or show a training row.

python -m launch.prepare miniature/decoder
python -m launch.prepare miniature/sft
python -m launch.prepare show miniature/decoder --record 12
"""

from cm3jax.config import Experiment
from cm3jax.data.pipeline import CorpusStream
from cm3jax.data.prepare import Tools, prepare
from cm3jax.data.prepare_tasks import prepare_tasks
from cm3jax.data.show import show_row
from cm3jax.errors import UserError
from cm3jax.learners import clip, vqgan
from cm3jax.tokenizers.text import TextTokenizer
from launch.cli import parse_experiment
from launch.env import main

_DESCRIPTION = (
    "Turn raw pairs into a tokenised corpus and a memory bank, or the data sets of data.tasks into "
    "corpora of instruction tuning; what was interrupted continues. "
    "`show EXPERIMENT --record N` draws the training row that holds a record."
)


def run(argv: list[str]) -> None:
    """Prepare, or show a row when the first argument is `show`."""
    if argv[:1] == ["show"]:
        record, rest = _take_record(argv[1:])
        print(show(parse_experiment(rest, _DESCRIPTION), record), end="")
    else:
        experiment = parse_experiment(argv, _DESCRIPTION)
        if experiment.data.tasks:
            tokenizers = experiment.tokenizers
            text, image = TextTokenizer.load(tokenizers.text), vqgan.load(tokenizers.image)
            prepare_tasks(experiment, text, image, _say)
        else:
            prepare(experiment, make_tools(experiment), _say)


def _say(line: str) -> None:
    print(line, flush=True)


def make_tools(experiment: Experiment) -> Tools:
    """The tokenizers and the encoder that an experiment names; `UserError` without them."""
    return Tools(
        text=TextTokenizer.load(experiment.tokenizers.text),
        image=vqgan.load(experiment.tokenizers.image),
        encoder=clip.load(experiment.retrieval.encoder),
    )


def show(experiment: Experiment, record: int) -> str:
    """The row of the first epoch that holds a record of the training corpus, as text.

    Of a mixture, its first corpus.
    """
    rows = CorpusStream.open(experiment, "train").corpora[0]
    return show_row(rows, record, TextTokenizer.load(experiment.tokenizers.text))


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
