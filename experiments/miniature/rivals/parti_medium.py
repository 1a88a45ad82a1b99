"""Parti among its rivals, half as wide.

python -m launch.train miniature/rivals/parti_medium
"""

from cm3jax.config import Experiment

from . import parti, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.medium(parti.get_config())
