"""The miniature's decoder: retrieval-augmented CM3 over 32x32 emblems.

    python -m launch.prepare miniature/decoder
    python -m launch.train miniature/decoder

Needs the runs `miniature/text`, `miniature/vqgan` and `miniature/clip`. A step takes about 1.0 s on
two free cores, so the whole about 5.5 hours; it has not been trained to its end yet, and what comes
of it is open.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """A decoder of 3 M parameters over rows of 256 tokens."""
    return base(
        "miniature/decoder",
        data={"records": 50_000, "batch": 16},
        optim={"peak_lr": 2e-3, "warmup_steps": 300},
        train={"steps": 20_000},
        checkpoint={"every": 500},
    )
