"""The miniature's retrieval encoder: CLIP with a document loss, over 32x32 emblems.

    python -m launch.train miniature/clip

Needs the run `miniature/text`. The quickstart's 200 steps took 142 s on two shared cores; with
them, an emblem that training never saw is among the two best documents for 197 of 200 prompts.
These 1,000 steps have not been run to their end.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """Two towers of width 128."""
    return base(
        "miniature/clip",
        learner="clip",
        data={"records": 50_000, "batch": 128},
        optim={"peak_lr": 1e-3, "warmup_steps": 20},
        train={"steps": 400},
    )
