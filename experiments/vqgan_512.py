"""Chameleon's image tokenizer: 512 x 512 pixels as 32 x 32 of 8,192 codes (arXiv 2405.09818).

    python -m launch.train vqgan_512 --data.source PICTURES --vqgan-loss.lpips lpips.npz

The architecture of the released weights (f = 16, 68.7 M parameters); the recipe is `vqgan_256`'s,
since the paper does not say its own. Never run.
"""

import dataclasses

from cm3jax.config import Experiment, VQGANConfig

from . import vqgan_256


def get_config() -> Experiment:
    """One level more than `vqgan_256`."""
    experiment = vqgan_256.get_config()
    return dataclasses.replace(
        experiment,
        name="vqgan_512",
        vqgan=VQGANConfig(image_size=512, multipliers=(1, 1, 2, 2, 4)),
        data=dataclasses.replace(experiment.data, image_size=512),
    )
