"""The miniature's decoder: retrieval-augmented CM3 over 32x32 emblems.

    python -m launch.prepare miniature/decoder
    python -m launch.train miniature/decoder

Needs the runs `miniature/text`, `miniature/vqgan` and `miniature/clip`. The whole should
take about 5.5 hours on two free cores: a step was measured at about 2 s of processor time, and the
run was never made. What comes of it is open.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """A decoder of 1 M parameters over rows of 256 tokens."""
    return base(
        "miniature/decoder",
        data={"records": 50_000, "batch": 8},
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100},
        train={"steps": 8000},
        checkpoint={"every": 500},
    )
