"""The miniature's image tokenizer at twice the size: 64 x 64 emblems as 4 x 4 of 768 codes.

    python -m launch.train vqgan_emblems_64

What a cell of an emblem's picture can show are 509 patches, so that no more than two thirds of the
codebook can be of use. Not measured yet.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """A code per 16 x 16 pixels, trained as `miniature/vqgan`."""
    return base(
        "vqgan_emblems_64",
        learner="vqgan",
        vocab={"image_codes": 768},
        vqgan={"image_size": 64, "patch": 16, "codes": 768},
        data={"image_size": 64, "batch": 32},
        optim={"peak_lr": 4e-3, "warmup_steps": 50, "end_lr_ratio": 0.02, "weight_decay": 0.0},
        train={"steps": 4000, "log_every": 100, "validate_every": 1000},
        checkpoint={"every": 1000},
    )
