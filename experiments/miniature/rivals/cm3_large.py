"""CM3 among its rivals, larger.

python -m launch.train miniature/rivals/cm3_large
"""

from cm3jax.config import Experiment
from experiments.miniature.rivals import cm3, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.large(cm3.get_config())
