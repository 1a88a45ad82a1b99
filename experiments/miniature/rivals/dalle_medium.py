"""DALL-E among its rivals, half as wide.

python -m launch.train miniature/rivals/dalle_medium
"""

from cm3jax.config import Experiment
from cm3jax.experiments.miniature.rivals import dalle, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.medium(dalle.get_config())
