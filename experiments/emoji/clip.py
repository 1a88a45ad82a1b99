"""The retrieval encoder of emoji: CLIP with a document loss, over names and images of things.

    python -m launch.train emoji/clip

Needs the run `emoji/text`. Partners show the same thing in the same style and size: a decoder
copies codes, and finds them only in a document of its own style and size.
"""

from cm3jax.config import Experiment

from .base import base


def get_config() -> Experiment:
    """Two towers of width 128."""
    return base(
        "emoji/clip",
        learner="clip",
        data={"batch": 128},
        optim={"peak_lr": 1e-3, "warmup_steps": 50},
        train={"steps": 2400, "log_every": 50, "validate_every": 400},
        checkpoint={"every": 100},
    )
