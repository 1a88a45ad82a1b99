"""CM3Leon among its rivals, larger.

python -m launch.train miniature/rivals/cm3leon_large
"""

from cm3jax.config import Experiment
from experiments.miniature.rivals import cm3leon, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.large(cm3leon.get_config())
