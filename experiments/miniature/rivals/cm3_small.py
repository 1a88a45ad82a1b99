"""CM3 among its rivals, smaller.

python -m launch.train miniature/rivals/cm3_small
"""

from cm3jax.config import Experiment

from . import cm3, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.small(cm3.get_config())
