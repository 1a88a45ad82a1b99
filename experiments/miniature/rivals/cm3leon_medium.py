"""CM3Leon among its rivals, half as wide.

python -m launch.train miniature/rivals/cm3leon_medium
"""

from cm3jax.config import Experiment

from . import cm3leon, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.medium(cm3leon.get_config())
