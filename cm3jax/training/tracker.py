"""Experiment trackers, for whoever compares runs in one: `metrics.jsonl` stays the truth."""

import importlib
import importlib.util
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any, Literal

import jax
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import write_json
from cm3jax.io.typed_json import read_fields

_log = logging.getLogger(__name__)

_PROJECT = "cm3jax"


def require_tracker(name: str) -> None:
    """Raise `UserError` unless the package of a tracker is there; an empty name needs none."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(
            f"train.tracker={name} needs the package {name}; install it (the extra `{name}`), or "
            "leave the option out."
        )


def _name(folder: epath.Path) -> str:
    """What the run of a folder is called, now and in later lives."""
    path = folder / "tracker.json"
    if not path.exists():
        write_json(path, {"name": f"{folder.name}-{secrets.token_hex(3)}"})
    return read_fields(path, {"name": str}, "the run's name for its tracker")["name"]


class Tracker:
    """A run in the tracker `kind`: Trackio or Weights & Biases, whose interface is one.

    A context manager around the loop, which does nothing without a tracker or in other processes
    than the first.

    Its project is `cm3jax`; its name, that of the run directory and some letters that are its own,
    is kept in `tracker.json`, so that a run that is resumed goes on in it.
    The tracker's own environment variables say where it keeps or sends its data. A failure is
    reported once and then ignored: no run ends for it.
    """

    def __init__(
        self,
        kind: Literal["", "trackio", "wandb"],
        run_dir: epath.PathLike,
        options: Mapping[str, Any],
    ):
        self._run: Any = None
        if kind and jax.process_index() == 0:
            self._begin(kind, epath.Path(run_dir), options)

    def _begin(self, kind: str, folder: epath.Path, config: Mapping[str, Any]) -> None:
        try:
            module = importlib.import_module(kind)
            name = _name(folder)
            options: dict[str, Any] = {"project": _PROJECT, "name": name, "config": dict(config)}
            if kind == "wandb":
                options |= {"id": name, "dir": os.fspath(folder)}
            self._run = module.init(**options, resume="allow")
        except Exception as error:  # networks, accounts, disks, and what the package needs
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the numbers of one step."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if self._run is None:
            return
        try:
            self._run.log(numbers, step=step)
        except Exception as error:
            self._give_up(error)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_) -> None:
        """Waits until everything is where it goes."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _log.warning("the tracker fails and is told no more; metrics.jsonl has all: %s", error)
