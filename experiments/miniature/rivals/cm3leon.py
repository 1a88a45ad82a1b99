"""CM3Leon among its rivals: retrieved documents in front, in full weight, spans moved to the end.

    python -m launch.prepare miniature/rivals/cm3leon
    python -m launch.train miniature/rivals/cm3leon

The others train on the same corpus. `python -m launch.report --rerun rivals` trains and compares
all of them.
"""

from cm3jax.config import Experiment

from .shared import rival


def get_config() -> Experiment:
    """Nothing differs from what all share."""
    return rival("miniature/rivals/cm3leon")
