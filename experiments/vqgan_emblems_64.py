"""The miniature's image tokenizer at twice the size: 64 x 64 emblems as 4 x 4 of 768 codes.

    python -m launch.train vqgan_emblems_64

227 s on two Intel Xeon cores that other work shared (jax 0.10.2, Python 3.11). The reader reads
all 424 held-out images exactly from their reconstructions (PSNR 50.0 dB), and 51 % of the codes
are in use there: 389, as many as those images show patches. Taken up again at step 3,000 and
stopped by SIGTERM at 3,093, it goes on with the same losses to the bit.

    python -m launch.evaluate reconstruction --run runs/vqgan_emblems_64
"""

from cm3jax.config import Experiment

from .miniature.base import base


def get_config() -> Experiment:
    """A code per 16 x 16 pixels, trained as `miniature/vqgan`."""
    return base(
        "vqgan_emblems_64",
        learner="vqgan",
        vocab={"image_codes": 768},
        vqgan={"image_size": 64, "patch": 16, "codes": 768},
        data={"image_size": 64, "batch": 32, "records": 20_000, "emblems": 3000},
        optim={"peak_lr": 4e-3, "warmup_steps": 50, "end_lr_ratio": 0.02, "weight_decay": 0.0},
        train={"steps": 4000, "log_every": 100, "validate_every": 1000},
        checkpoint={"every": 1000},
    )
