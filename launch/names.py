"""Experiments by name, the shipped weights, and what a mistyped name was meant to be."""

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path

from cm3jax.config import Experiment
from cm3jax.errors import UserError

_EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"

SHIPPED = _EXPERIMENTS / "miniature" / "weights"
"""Runs `text`, `vqgan`, `clip`, `decoder` and `sft` that come with the checkout."""


def experiment_names() -> list[str]:
    """Names of all experiments, e.g. `miniature/clip`, sorted."""
    return sorted(
        path.relative_to(_EXPERIMENTS).with_suffix("").as_posix()
        for path in _EXPERIMENTS.rglob("*.py")
        if "\ndef get_config(" in path.read_text()
    )


def load_experiment(name: str) -> Experiment:
    """The experiment that `experiments/NAME.py` defines; `UserError` if there is none."""
    names = experiment_names()
    if name not in names:
        raise UserError(
            f"there is no experiment {name!r}{nearest(name, names)}; "
            f"the experiments are {', '.join(names)}."
        )
    return importlib.import_module(f"experiments.{name.replace('/', '.')}").get_config()


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" (did you mean {near[0]}?)" if near else ""
