"""Experiments by name: the presets of `experiments/`, in a checkout and in an installed library.

The package `cm3jax.experiments` has that folder's modules: see its `__init__` in a checkout.
"""

import importlib
from pathlib import Path

from cm3jax.config import Experiment
from cm3jax.errors import UserError, nearest

_PACKAGE = "cm3jax.experiments"


def experiment_names() -> list[str]:
    """Names of all experiments, e.g. `miniature/clip`, sorted."""
    (folder,) = map(Path, importlib.import_module(_PACKAGE).__path__)
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.py")
        if "\ndef get_config(" in path.read_text("utf-8")
    )


def load_experiment(name: str) -> Experiment:
    """The experiment called `name`, with every field resolved: what `launch.train NAME` trains.

        experiment = cm3jax.load_experiment("cm3leon_7b")
        experiment.model.layers  # 32

    An `Experiment` is a frozen dataclass of frozen dataclasses; `dataclasses.replace` changes a
    field. Raises `UserError` if there is none of that name; it lists those there are.
    """
    names = experiment_names()
    if name not in names:
        raise UserError(
            f"there is no experiment {name!r}{nearest(name, names)}; "
            f"the experiments are {', '.join(names)}."
        )
    return importlib.import_module(f"{_PACKAGE}.{name.replace('/', '.')}").get_config()
