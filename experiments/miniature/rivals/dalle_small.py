"""DALL-E among its rivals, smaller.

python -m launch.train miniature/rivals/dalle_small
"""

from cm3jax.config import Experiment

from . import dalle, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.small(dalle.get_config())
