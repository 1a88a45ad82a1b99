"""Masks in retrieved documents too, metaseq's way.

python -m launch.train miniature/masking/documents
"""

from cm3jax.config import Experiment

from ..rivals.shared import MEDIUM, rival


def get_config() -> Experiment:
    """A mask falls on the document or on what it is shown for."""
    return rival("miniature/masking/documents", model=MEDIUM, cm3={"mask_retrieved": True})
