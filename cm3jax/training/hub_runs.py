"""Runs on the hub, found by their id: what `launch.convert export RUN --push` uploaded."""

import functools
import re
from pathlib import Path

from etils import epath

from cm3jax.errors import UserError
from cm3jax.training.exported_run import PARAMS_FILE

_ID = re.compile(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:@(\w[\w./-]*))?")
_KINDS = ("*.json", "*.safetensors", "*.model")
_FILES = (
    *(PARAMS_FILE, "config.json", "scores.json"),
    *(f"{part}/{kind}" for part in ("text", "vqgan", "clip") for kind in _KINDS),
)
"""What is downloaded: nothing that could be a pickle, and of another project's repository not its
gigabytes of weights."""


def is_hub_id(run_dir: epath.PathLike) -> bool:
    """Whether a run is named by the hub's id, `hf:OWNER/NAME[@REVISION]`, and not by a path."""
    return str(run_dir).startswith("hf:")


def newest_snapshot(run_id: epath.PathLike) -> str:
    """The folder in the hub's cache that holds the run `hf:OWNER/NAME` as it is on the hub now.

    What is missing there is downloaded; `@REVISION` (a branch, a tag, a commit) chooses another
    version than the newest. Raises `UserError` for what the hub and its cache do not give, and for
    a repository that holds no run of this project.
    """
    found = _ID.fullmatch(str(run_id))
    if found is None:
        raise UserError(f"{run_id} is not an id of the hub; write hf:OWNER/NAME or give a folder.")
    import huggingface_hub

    name, revision = found.groups()
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(_FILES)
        )
    except Exception as error:  # of the network, the hub, its permissions
        raise UserError(
            f"neither the hub nor its cache gave {run_id} ({type(error).__name__}); check the id, "
            "the network and `hf auth login`."
        ) from None
    if not (Path(folder) / PARAMS_FILE).exists():
        raise UserError(
            f"{run_id} has no {PARAMS_FILE}, so launch.convert export --push did not upload it; "
            "python -m launch.convert --help says what else can be imported."
        )
    return folder


@functools.cache
def snapshot(run_id: str) -> str:
    """The same folder for the rest of this process: weights, tokenizers and scores of one command
    are of one version, whatever is pushed meanwhile."""
    return newest_snapshot(run_id)
