"""RA-CM3 (arXiv 2211.12561): 2.7 B parameters, 150 M pairs, retrieved documents at a tenth of loss.

    python -m launch.train ra_cm3 --data.corpus PATH --data.bank PATH

The paper gives the parameters, Adam's constants, rate and warm-up, 16 rows on each of 256 A100s and
the loss weight 0.1; layers and widths are metaseq's at this size. 0, 1 or 2 documents are shown
with equal odds. How long it trained, apart from "5 days", is not known: the steps are one pass over
the pairs with one document each.
"""

import dataclasses

from cm3jax.config import CM3Config, Experiment, MeshConfig, OptimConfig, RetrievalConfig

from . import cm3leon_350m


def get_config() -> Experiment:
    """CM3Leon's data and objective, except for the weight of what was retrieved."""
    base = cm3leon_350m.get_config()
    return dataclasses.replace(
        base,
        name="ra_cm3",
        model=dataclasses.replace(
            base.model, layers=32, width=2560, heads=32, head_width=80, ffn=10240, remat="full"
        ),
        retrieval=RetrievalConfig(documents=2),
        cm3=CM3Config(
            no_documents=0.0, vary_documents=True, mask_retrieved=True, retrieved_weight=0.1
        ),
        data=dataclasses.replace(base.data, records=150_000_000, batch=4096),
        optim=OptimConfig(peak_lr=1e-4, warmup_steps=1500, end_lr_ratio=0.0),
        train=dataclasses.replace(base.train, steps=18_500),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
