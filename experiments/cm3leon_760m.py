"""CM3Leon-760M (arXiv 2309.02591, table 3): 0.786 B parameters, 1.9 T tokens on 256 A100s.

python -m launch.train cm3leon_760m --data.corpus PATH --data.bank PATH
"""

import dataclasses

from cm3jax.config import Experiment

from . import cm3leon_350m


def get_config() -> Experiment:
    """The 350M model made wider."""
    base = cm3leon_350m.get_config()
    return dataclasses.replace(
        base,
        name="cm3leon_760m",
        model=dataclasses.replace(base.model, width=1536, head_width=96, ffn=6144),
        optim=dataclasses.replace(base.optim, peak_lr=5e-4),
        train=dataclasses.replace(base.train, steps=226_500),  # 1.9 T tokens
    )
