"""CM3Leon's instruction tuning, 760M (arXiv 2309.02591, section 4, table 4): 64 A100.

    python -m launch.prepare sft_760m
    python -m launch.train sft_760m --init-from runs/cm3leon_760m --mesh.fsdp 64

As `sft_7b`, from a smaller model.
"""

from cm3jax.config import Experiment

from . import cm3leon_760m
from .sft_7b import tuned


def get_config() -> Experiment:
    """From the checkpoint of `cm3leon_760m`."""
    return tuned(cm3leon_760m.get_config(), "sft_760m")
