"""The retrieval encoder of a folder: CLIP with a document loss over captions and images.

    python -m launch.train folder/clip --data.source DIR

Needs the run `folder/text`. Records without `subjects` are partners by their captions
(`clip.partners`).
"""

from cm3jax.config import Experiment

from .base import chain


def get_config() -> Experiment:
    """Two towers of width 128."""
    return chain()["clip"]
