"""CM3 among the rivals: CM3Leon without documents.

python -m launch.train miniature/rivals/cm3
"""

from cm3jax.config import Experiment

from .shared import rival


def get_config() -> Experiment:
    """Retrieves nothing, so that a row holds about twice as many captions and images."""
    return rival("miniature/rivals/cm3", retrieval={"documents": 0}, cm3={"no_documents": 0.0})
