"""The miniature's text tokenizer: 512 SentencePiece BPE pieces of the captions of emblems.

    python -m launch.train miniature/text

A second after the data is there, which takes two and a half minutes. Everyday words of the captions
are one piece, made-up names are their syllables; a caption has 20 pieces on average.
"""

from cm3jax.config import Experiment

from .base import base


def get_config() -> Experiment:
    """BPE, 256 of the pieces being bytes."""
    return base("miniature/text", learner="text_tokenizer")
