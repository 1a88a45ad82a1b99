"""The retrieval encoder of emoji: CLIP with a document loss, over names and pictures of things.

    python -m launch.train emoji/clip

Needs the run `emoji/text`.
"""

from cm3jax.config import Experiment
from cm3jax.experiments.emoji.base import base


def get_config() -> Experiment:
    """Two towers of width 128; documents are partners that show the same thing, in any style."""
    return base(
        "emoji/clip",
        learner="clip",
        data={"batch": 128},
        optim={"peak_lr": 1e-3, "warmup_steps": 50},
        train={"steps": 600, "log_every": 25, "validate_every": 100},
        checkpoint={"every": 50},
    )
