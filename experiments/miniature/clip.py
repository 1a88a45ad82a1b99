"""The miniature's retrieval encoder: CLIP with a document loss, over 32x32 emblems.

    python -m launch.train miniature/clip

Needs the run `miniature/text`. Five minutes on two Intel Xeon cores that other work shared. Of 600
documents of emblems that training never saw, asked by their texts, over 99 % find a picture of
their emblem among the two best others, and over 92 % two.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """Two towers of width 128."""
    return base(
        "miniature/clip",
        learner="clip",
        data={"batch": 128},
        optim={"peak_lr": 1e-3, "warmup_steps": 20},
        train={"steps": 400},
    )
