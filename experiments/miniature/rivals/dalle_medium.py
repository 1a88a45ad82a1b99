"""DALL-E among its rivals, half as wide.

python -m launch.train miniature/rivals/dalle_medium
"""

from cm3jax.config import Experiment

from . import dalle, shared


def get_config() -> Experiment:
    """Nothing but the size differs."""
    return shared.medium(dalle.get_config())
