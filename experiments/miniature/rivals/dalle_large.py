"""DALL-E among its rivals, larger.

python -m launch.train miniature/rivals/dalle_large
"""

from cm3jax.config import Experiment
from experiments.miniature.rivals import dalle, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.large(dalle.get_config())
