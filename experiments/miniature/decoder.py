"""The miniature's decoder: retrieval-augmented CM3 over 32x32 emblems.

    python -m launch.prepare miniature/decoder
    python -m launch.train miniature/decoder

Needs the runs `miniature/text`, `miniature/vqgan` and `miniature/clip`; preparing takes three
minutes. 0.3 s a step on two Intel Xeon cores that other work shared, so about 80 minutes; never run
to its end. Two earlier runs were stopped: with two heads of 64, after 2,000 steps, 33 % of plain
scenes were exact and 17 % of the codes of emblems that only the documents show (likeliest code
after the right ones before it); the looks of the 3,000 training emblems are learnt by heart
instead. What will come of a whole run is open.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """A decoder of 1 M parameters over rows of 256 tokens."""
    return base(
        "miniature/decoder",
        data={"batch": 8},
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100},
        train={"steps": 16_000},
        checkpoint={"every": 500},
    )
