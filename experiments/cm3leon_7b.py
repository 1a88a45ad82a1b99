"""CM3Leon-7B (arXiv 2309.02591, table 3): 6.73 B parameters, 2.4 T tokens on 512 A100s.

    python -m launch.train cm3leon_7b --data.corpus PATH --data.bank PATH

Parameters and optimiser state take 12 bytes a parameter, 81 GB: hence `mesh.fsdp=-1`, which spreads
them over all devices.
"""

import dataclasses

from cm3jax.config import Experiment, MeshConfig

from . import cm3leon_350m


def get_config() -> Experiment:
    """The 350M model made wider and deeper, its parameters sharded."""
    base = cm3leon_350m.get_config()
    return dataclasses.replace(
        base,
        name="cm3leon_7b",
        model=dataclasses.replace(
            base.model, layers=32, width=4096, heads=32, head_width=128, ffn=16384, remat="full"
        ),
        optim=dataclasses.replace(base.optim, peak_lr=1.2e-4),
        train=dataclasses.replace(base.train, steps=286_100),  # 2.4 T tokens
        mesh=MeshConfig(data=1, fsdp=-1),
    )
