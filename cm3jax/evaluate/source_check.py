"""Which data a run was trained on: prompts of one data set say nothing of a model of another."""

from etils import epath

from cm3jax.config import DataConfig
from cm3jax.errors import UserError


def require_source(run_dir: epath.PathLike, data: DataConfig, wanted: str) -> None:
    """Raise `UserError` unless a run was trained on the procedural data set `wanted`."""
    if data.source != wanted:
        raise UserError(
            f"{run_dir} was trained on {data.source}, and these prompts are of {wanted}; ask it by "
            "python -m launch.evaluate heldout, which takes held-out records of any source."
        )
