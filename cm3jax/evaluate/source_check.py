"""Which data a run was trained on: prompts of one data set say nothing of a model of another."""

import os
import shlex

from etils import epath

from cm3jax.config import DataConfig
from cm3jax.errors import UserError


def require_source(run_dir: epath.PathLike, data: DataConfig, wanted: str) -> None:
    """Raise `UserError` unless a run was trained on the procedural data set `wanted`."""
    if data.source != wanted:
        command = f"python -m launch.evaluate heldout --run {shlex.quote(os.fspath(run_dir))}"
        raise UserError(
            f"{run_dir} was trained on {data.source}, and these prompts are of {wanted}; ask it by "
            f"{command}, which takes held-out records of any source."
        )
