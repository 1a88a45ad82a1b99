"""What a training reads, and whether a job would find it on its machines."""

import subprocess
from collections.abc import Container
from pathlib import Path

from etils import epath

from cm3jax.config import Experiment
from cm3jax.data.corpus import mixture_part
from cm3jax.errors import UserError
from launch.parts import how_to_make

_ROOT = Path(__file__).resolve().parent.parent


def inputs(experiment: Experiment) -> dict[str, list[str]]:
    """Files and folders that must be there before training, by the option that names them.

    An option with an empty list must be given.
    """
    data, lpips = experiment.data, experiment.vqgan_loss.lpips
    if experiment.decodes and not data.online:
        homes = [mixture_part(name)[0] for name, _ in data.mixture]
        corpora = [f"{home}/corpus" for home in homes] or [data.corpus]
        option = "data.mixture" if homes else "data.corpus"
        given = {option: [f"{corpus}/train/manifest.json" for corpus in corpora if corpus]}
    else:
        given = _raw_inputs(experiment)
    if experiment.learner == "vqgan" and lpips not in ("", "random"):
        given["vqgan_loss.lpips"] = [lpips]
    if experiment.init_from:
        given["init_from"] = [experiment.init_from]
    return given


def _raw_inputs(experiment: Experiment) -> dict[str, list[str]]:
    """The inputs of a training that reads raw pairs."""
    data, named = experiment.data, {}
    if data.source not in ("emblems", "emoji") and not data.source.startswith("tfds:"):
        named["data.source"] = data.source
    if experiment.learner == "clip" or data.online:
        named["tokenizers.text"] = experiment.tokenizers.text
    if data.online:
        named["tokenizers.image"] = experiment.tokenizers.image
        named["retrieval.encoder"] = experiment.retrieval.encoder
        named["data.bank"] = data.bank
    return {option: [path] if path else [] for option, path in named.items()}


def require_named(experiment: Experiment, options: Container[str] | None = None) -> None:
    """Raise `UserError` for what the experiment reads and does not name, of `options` or any."""
    for option, paths in inputs(experiment).items():
        if paths or (options is not None and option not in options):
            continue
        flag = f"--{option.replace('_', '-')}"
        raise UserError(
            f"{experiment.name} names no {option}; {_how(experiment, '', option)}, and give "
            f"{'the same --data.corpus and --data.bank' if option == 'data.corpus' else flag}."
        )


def require_inputs(experiment: Experiment, in_bucket: bool) -> None:
    """Raise `UserError` for what the experiment reads and a job would not find.

    `in_bucket` says that the job's machines share no disk with this one: they have the files of
    the commit and the bucket. Paths in a bucket are not checked from here.
    """
    require_named(experiment)
    for option, paths in inputs(experiment).items():
        flag = f"--{option.replace('_', '-')}"
        for path in paths:
            if "://" in path or _is_shipped(path):
                continue
            if in_bucket:
                raise UserError(
                    f"{option} is at {path} on this machine, which the job's machines do not see; "
                    f"copy it to the bucket and give {flag} gs://…"
                )
            if not epath.Path(path).exists():
                raise UserError(
                    f"{path} is not there, and the job would end at once; "
                    f"{_how(experiment, path, option)}, or give another {flag}."
                )


def _how(experiment: Experiment, path: str, option: str) -> str:
    """How to make what an option names."""
    if option in ("data.source", "vqgan_loss.lpips"):
        return "get it (docs/data.md and docs/training.md say how)"
    return f"make it with {how_to_make(experiment, path, option)}"


def _is_shipped(path: str) -> bool:
    """Whether the path is a file or folder of the commit, which the job ships."""
    tracked = ["git", "-C", str(_ROOT), "ls-files", "--error-unmatch", "--", path]
    return subprocess.run(tracked, capture_output=True).returncode == 0
