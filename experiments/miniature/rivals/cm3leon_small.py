"""CM3Leon among its rivals, smaller.

python -m launch.train miniature/rivals/cm3leon_small
"""

from cm3jax.config import Experiment

from . import cm3leon, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.small(cm3leon.get_config())
