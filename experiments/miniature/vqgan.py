"""The miniature's image tokenizer: a VQGAN whose 1,024 codes are 8x8 patches of emblems.

    python -m launch.train miniature/vqgan

192 s on two Intel Xeon cores that other work shared. The reader reads each of 200 images of
prompts exactly from its reconstruction.
"""

from cm3jax.config import Experiment

from .base import base


def get_config() -> Experiment:
    """0.2 M parameters, trained on images of all kinds."""
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
