"""The tokenizers and encoders that an experiment reads, and the commands that make missing ones.

A fresh checkout holds the shipped weights; what else an experiment names is made by other commands.
"""

from collections.abc import Sequence
from pathlib import PurePath

from etils import epath

from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.presets import experiment_names

TOKENIZERS = ("tokenizers.text", "tokenizers.image")
PARTS = (*TOKENIZERS, "retrieval.encoder")
"""The options that name them, in the order in which they are made."""


def require_made(experiment: Experiment, options: Sequence[str] = PARTS) -> None:
    """Raise `UserError` where what these options name is not there, and say what makes it.

    What is not named, or lies in a bucket, is left to whoever reads it.
    """
    missing = {}
    for option in options:
        section, name = option.split(".")
        path = getattr(getattr(experiment, section), name)
        if path and "://" not in path and not epath.Path(path).exists():
            missing[path] = option
    shipped = [path for path in missing if PurePath(path).parts[0] == "experiments"]
    if shipped:
        raise UserError(
            f"{shipped[0]} is not there, but comes with a checkout; run the command at its root."
        )
    if missing:
        commands = dict.fromkeys(how_to_make(experiment, *pair) for pair in missing.items())
        flags = dict.fromkeys(f"--{option.replace('_', '-')}" for option in missing.values())
        raise UserError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there; make "
            f"{'it' if len(missing) == 1 else 'them'} with {', then '.join(commands)}, or give "
            f"another {', '.join(flags)}."
        )


def how_to_make(experiment: Experiment, path: str, option: str) -> str:
    """The command that makes what an option of an experiment names."""
    parts = PurePath(path).parts
    if parts[:2] in (("runs", "quickstart"), ("data", "quickstart")):
        return "bash launch/quickstart.sh"
    if option.startswith("data."):
        return f"python -m launch.prepare {experiment.name}"
    name = "/".join(parts[1:])
    if parts[:1] == ("runs",) and name in experiment_names():
        return f"python -m launch.train {name}"
    return f"python -m launch.train EXPERIMENT --workdir {path}"
