"""The retrieval encoder of emoji: CLIP with a document loss, over names and images of things.

    python -m launch.train emoji/clip

Its text tokenizer is the shipped one. Partners show the same thing in the same style and size: a
decoder copies codes, and finds them only in a document of its own style and size. 86 minutes on two
AMD EPYC cores that much other work shared. Among the two best of the bank's documents for each of
400 captions is one of the thing, whose name training never showed, for 99 % (for all of 400 flags),
in its style and size for 92 %; for images it is 81 % (flags 84 %).
"""

from cm3jax.config import Experiment

from .base import SHIPPED, base


def get_config() -> Experiment:
    """Two towers of width 128."""
    return base(
        "emoji/clip",
        learner="clip",
        tokenizers={"text": f"{SHIPPED}/text"},
        data={"batch": 128},
        optim={"peak_lr": 1e-3, "warmup_steps": 50},
        train={"steps": 2400, "log_every": 50, "validate_every": 400},
        checkpoint={"every": 100},
    )
