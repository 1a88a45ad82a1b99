"""Parti among the rivals: an encoder reads the caption, a decoder draws the image.

python -m launch.train miniature/rivals/parti

As many layers as the others, half of them the encoder's; with cross-attention these are 1.12 M
parameters beside their 0.99 M. 32 captions of 48 tokens, longer ones cut, and images of 16 are as
many tokens as a batch of theirs.
"""

from cm3jax.config import Experiment

from .shared import rival


def get_config() -> Experiment:
    """A tenth of the captions is dropped, as in the paper."""
    return rival(
        "miniature/rivals/parti",
        learner="parti",
        retrieval={"documents": 0},
        model={"layers": 2, "unroll": 2},
        parti={"encoder_layers": 2, "text_tokens": 48},
        data={"batch": 32},
    )
