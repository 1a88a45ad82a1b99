"""The tokenizers, encoders and data that an experiment reads, and the commands that make them.

A fresh checkout holds the shipped weights; what else an experiment names is made by other commands.
They are named as a shell takes them, with the options that this one was given.
"""

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import DataConfig, Experiment
from cm3jax.data.corpus import mixture_part
from cm3jax.errors import UserError
from cm3jax.presets import experiment_names, load_experiment
from launch.jobs import overrides

TOKENIZERS = ("tokenizers.text", "tokenizers.image")
PARTS = (*TOKENIZERS, "retrieval.encoder")
"""The options that name them, in the order in which they are made."""
_LEARNERS = dict(zip(PARTS, ("text_tokenizer", "vqgan", "clip"), strict=True))
_QUICKSTART = "bash launch/quickstart.sh"
_CLIP = "openai/clip-vit-base-patch32"
"""The encoder for those whose family of experiments trains none."""
_PREPARED_BY = ("vocab", "tokenizers", "vqgan", "model", "retrieval", "data")
"""The sections of an experiment that decide what `launch.prepare` makes."""
_ROWS = ("corpus", "bank", "mixture", "online", "resample", "tasks", "rows", "batch", "threads")
"""Fields of `data` that say nothing about raw records."""
_PLACEHOLDER = re.compile(
    r"python -m launch\.(prepare|index build) EXPERIMENT(, (?:or )?the quickstart's [^.;]*\.sh)?"
)
"""What sentences of the library, which knows no experiment, call the command."""


def require_made(experiment: Experiment, options: Sequence[str] = PARTS) -> None:
    """Raise `UserError` where what these options name is not there, and say what makes it.

    What is not named, or is in a bucket, is left to whoever reads it.
    """
    missing = {}
    for option in options:
        path = _path(experiment, option)
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


def require_parts_named(experiment: Experiment, options: Sequence[str] = PARTS) -> None:
    """Raise `UserError` where the experiment does not say where these parts are, and say what makes
    them."""
    unnamed = [option for option in options if not _path(experiment, option)]
    if unnamed:
        commands = [how_to_make(experiment, "", option) for option in unnamed]
        flags = (f"--{option.replace('_', '-')}" for option in unnamed)
        raise UserError(
            f"{experiment.name} names no {', no '.join(unnamed)}; make "
            f"{'it' if len(unnamed) == 1 else 'them'} with {', then '.join(commands)}, and give "
            f"{', '.join(flags)}."
        )


def _path(experiment: Experiment, option: str) -> str:
    section, name = option.split(".")
    return getattr(getattr(experiment, section), name)


@contextlib.contextmanager
def naming_commands(experiment: Experiment, reads_mixture: bool = False) -> Iterator[None]:
    """Where a `UserError` of the library names a command for some EXPERIMENT, name the one for this
    experiment, with its options. `reads_mixture` says that its data are those of `data.mixture`, if
    that names any."""
    try:
        yield
    except UserError as error:
        if experiment.name not in experiment_names():  # a member of a chain
            raise
        sentence = str(error)
        data = _data_of_mixture(experiment, sentence) if reads_mixture else experiment.data

        def command(found: re.Match) -> str:
            return _how_to_prepare(experiment, data, found[1])

        if (named := _PLACEHOLDER.sub(command, sentence)) == sentence:
            raise
        raise UserError(named) from None


@contextlib.contextmanager
def naming_commands_of(run: str, bank: str = "", corpus: str = "") -> Iterator[None]:
    """As `naming_commands`, for the experiment of a trained run; `bank` and `corpus` are read in
    place of its own."""
    try:
        yield
    except UserError as error:
        sentence = str(error)
        if not (run and _PLACEHOLDER.search(sentence)):
            raise
        experiment = load_run(run).experiment
        data = experiment.data
        if corpus:
            beside = os.path.join(os.path.dirname(corpus.rstrip("/")), "bank")
            data = dataclasses.replace(data, corpus=corpus, bank=beside, mixture=())
        if bank:
            data = dataclasses.replace(data, bank=bank)
        place = os.fspath(epath.Path(data.bank))
        about_bank = data.bank and re.search(rf"(?<!\S){re.escape(place)}(?=[\s/])", sentence)
        if about_bank and PurePath(place).parts[:2] == ("data", "shipped"):
            raise UserError(_PLACEHOLDER.sub(_QUICKSTART, sentence)) from None
        with naming_commands(dataclasses.replace(experiment, data=data), not about_bank):
            raise


def require_corpus_read(experiment: Experiment) -> None:
    """Raise `UserError` where the command line names a corpus that is not read, because the preset
    trains on a mixture."""
    data, default = experiment.data, _preset_of(experiment).data
    if data.mixture and data.mixture == default.mixture and data.corpus != default.corpus:
        home = shlex.quote(os.path.dirname(data.corpus.rstrip("/")) or ".")
        instead = f"give --data.mixture {home} 1 for the folder that holds corpus and bank"
        raise UserError(
            f"{experiment.name} trains on data.mixture and would not read --data.corpus "
            f"{data.corpus}; {'leave it out' if data.tasks else instead}."
        )


def _data_of_mixture(experiment: Experiment, sentence: str = "") -> DataConfig:
    """The experiment's data with one directory of its mixture in place of corpus and bank: the one
    that a sentence names, or else the first that is missing, or the first."""
    data = experiment.data
    homes = [mixture_part(name)[0] for name, _ in data.mixture]
    if data.tasks or not homes:
        return data
    places = [re.escape(os.fspath(epath.Path(home))) for home in homes]
    found = (re.search(rf"(?<!\S){place}/(corpus|bank)\b", sentence) for place in places)
    named = [home for home, match in zip(homes, found, strict=True) if match]
    missing = [home for home in homes if not epath.Path(f"{home}/corpus/train").exists()]
    home = (named or missing or homes)[0]
    return dataclasses.replace(data, corpus=f"{home}/corpus", bank=f"{home}/bank")


def how_to_make(experiment: Experiment, path: str, option: str) -> str:
    """The command that makes what an option of an experiment names, for a shell."""
    if PurePath(path).parts[:2] == ("runs", "quickstart"):
        return _QUICKSTART
    if option.startswith("data."):
        return _how_to_prepare(experiment, _data_of_mixture(experiment))
    if option not in PARTS:  # a run to start from
        name, place = _preset_at(path), shlex.join(["--workdir", path])
        return _shell("train", name) if name else f"python -m launch.train EXPERIMENT {place}"
    return _training(experiment, path, option)


def _how_to_prepare(experiment: Experiment, data: DataConfig, command: str = "prepare") -> str:
    """The command that makes this corpus and bank, or by `index build` only the bank."""
    places = [PurePath(place) for place in (data.corpus, data.bank) if place]
    if places and all(place.parts[:2] == ("data", "quickstart") for place in places):
        return _QUICKSTART
    default = _preset_of(experiment)
    if not data.tasks:
        home = f"data/{experiment.name}"
        corpus, bank = data.corpus or f"{home}/corpus", data.bank or f"{home}/bank"
        data = dataclasses.replace(data, corpus=corpus, bank=bank, mixture=default.data.mixture)
    words = [] if experiment.seed == default.seed else ["--seed", str(experiment.seed)]
    for section in _PREPARED_BY:
        value: Any = data if section == "data" else getattr(experiment, section)
        words += overrides(value, getattr(default, section), f"{section}.")
    return _shell(command, experiment.name, *words)


def _shell(command: str, *words: str) -> str:
    return shlex.join(["python", "-m", *f"launch.{command}".split(), *words])


def _preset_of(experiment: Experiment) -> Experiment:
    """The preset that options made an experiment of; a member of a chain is its own."""
    names = experiment_names()
    return load_experiment(experiment.name) if experiment.name in names else experiment


def _training(experiment: Experiment, path: str, option: str) -> str:
    """The command that trains a tokenizer or an encoder, on the experiment's raw records."""
    name, learner = _trainer(experiment, path, option), _LEARNERS[option]
    place = [] if path in ("", f"runs/{name}") else ["--workdir", path]
    if not name and learner == "clip":
        return _shell("convert", "clip", _CLIP, "--out", path or "runs/clip")
    if not name:
        return f"python -m launch.train EXPERIMENT {shlex.join(place)}"
    default = _preset_of(experiment)
    kept: dict[str, Any] = {field: getattr(default.data, field) for field in _ROWS}
    words = overrides(dataclasses.replace(experiment.data, **kept), default.data, "data.")
    for section in ("vocab", "vqgan", "clip"):
        if section in ("vocab", learner):
            value, before = getattr(experiment, section), getattr(default, section)
            words += overrides(value, before, f"{section}.")
    text = experiment.tokenizers.text
    if learner == "clip" and text != load_experiment(name).tokenizers.text:
        words += ["--tokenizers.text", text]
    return _shell("train", name, *words, *place)


def _trainer(experiment: Experiment, path: str, option: str) -> str:
    """The preset whose run is at a path or, of those that train such a part, the nearest to the
    experiment; "" where there is none."""
    if name := _preset_at(path):
        return name
    names = experiment_names()
    if experiment.name not in names:  # a member of a chain
        return ""
    fitting = [name for name in names if _suits(load_experiment(name), experiment, option)]
    for folder in PurePath(experiment.name).parents:
        for name in fitting:
            if PurePath(name).parent == folder:
                return name
    return ""


def _preset_at(path: str) -> str:
    """The preset whose run is at a path; "" where there is none."""
    runs, *parts = PurePath(path).parts or ("",)
    name = "/".join(parts)
    return name if runs == "runs" and name in experiment_names() else ""


def _suits(part: Experiment, experiment: Experiment, option: str) -> bool:
    sizes = [(one.data.image_size, one.vqgan.grid) for one in (part, experiment)]
    return part.learner == _LEARNERS[option] and (
        option != "tokenizers.image" or sizes[0] == sizes[1]
    )
