"""Parti among its rivals, smaller.

python -m launch.train miniature/rivals/parti_small
"""

from cm3jax.config import Experiment

from . import parti, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.small(parti.get_config())
