"""The text tokenizer of emoji: 1,024 SentencePiece BPE pieces of their captions.

    npm pack --pack-destination data/raw/downloads/manual @iconify-json/twemoji@1.2.5 \
        @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/openmoji@1.2.29
    python -m launch.train emoji/text

Needs the four archives that the first command gets (7 MB), and the extra `emoji` of setup.py, which
draws them. The images are drawn once, in two minutes on two shared cores; the tokenizer takes
seconds.
"""

from cm3jax.config import Experiment

from .base import base


def get_config() -> Experiment:
    """BPE, 256 of the pieces being bytes."""
    return base("emoji/text", learner="text_tokenizer", train={"steps": 1})
