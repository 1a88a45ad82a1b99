"""The text tokenizer of a folder's captions: 1,024 SentencePiece BPE pieces.

    python -m launch.train folder/text --data.source DIR

Seconds. `launch.chain DIR` trains this and all that follows.
"""

from cm3jax.config import Experiment

from .base import chain


def get_config() -> Experiment:
    """Captions of every training record."""
    return chain()["text"]
