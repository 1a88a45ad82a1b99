"""The decoder of a folder: retrieval-augmented CM3 over rows of two documents and a query.

    python -m launch.prepare folder/decoder --data.source DIR
    python -m launch.train folder/decoder --data.source DIR

Needs the runs `folder/text`, `folder/vqgan` and `folder/clip`. For another side, width or number
of codes all members change together: `python -m launch.chain DIR --side 256`.
"""

from cm3jax.config import Experiment

from .base import chain


def get_config() -> Experiment:
    """A decoder of 1.1 M parameters."""
    return chain()["decoder"]
