"""Parti among its rivals, larger.

python -m launch.train miniature/rivals/parti_large
"""

from cm3jax.config import Experiment
from experiments.miniature.rivals import parti, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.large(parti.get_config())
