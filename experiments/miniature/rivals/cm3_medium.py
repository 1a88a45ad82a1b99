"""CM3 among its rivals, half as wide.

python -m launch.train miniature/rivals/cm3_medium
"""

from cm3jax.config import Experiment

from . import cm3, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.medium(cm3.get_config())
