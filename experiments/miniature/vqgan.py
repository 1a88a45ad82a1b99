"""The miniature's image tokenizer: a VQGAN whose 1,024 codes are 8x8 patches of emblems.

    python -m launch.train miniature/vqgan

605 s on one busy core; 2,000 steps, in another run, took 103 s. Of 2,000 validation pictures the
reader read every one exactly from its reconstruction, after either.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """0.2 M parameters, trained on pictures of all kinds."""
    return base(
        "miniature/vqgan",
        learner="vqgan",
        data={"batch": 32},
        optim={
            "peak_lr": 4e-3,
            "warmup_steps": 50,
            "end_lr_ratio": 0.02,
            "weight_decay": 0.0,
        },
        train={"steps": 4000, "log_every": 100, "validate_every": 1000},
        checkpoint={"every": 1000},
    )
