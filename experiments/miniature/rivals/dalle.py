"""DALL-E among the rivals: a plain causal model of captions before images.

python -m launch.train miniature/rivals/dalle
"""

from cm3jax.config import Experiment

from .shared import rival


def get_config() -> Experiment:
    """Nothing is masked and nothing retrieved."""
    return rival(
        "miniature/rivals/dalle",
        retrieval={"documents": 0},
        cm3={"mean_masks": 0.0, "no_documents": 0.0},
    )
