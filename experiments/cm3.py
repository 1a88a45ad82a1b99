"""CM3 without retrieval, RA-CM3's baseline (arXiv 2211.12561; the objective is arXiv 2201.07520's).

    python -m launch.train cm3 --data.corpus PATH --data.bank PATH

RA-CM3's model, data and optimiser without the documents. Samples are half as long, hence the fewer
steps for one pass over the pairs.
"""

import dataclasses

from cm3jax.config import CM3Config, Experiment, RetrievalConfig

from . import ra_cm3


def get_config() -> Experiment:
    """RA-CM3 that retrieves nothing."""
    base = ra_cm3.get_config()
    return dataclasses.replace(
        base,
        name="cm3",
        retrieval=RetrievalConfig(documents=0),
        cm3=CM3Config(no_documents=0.0),
        train=dataclasses.replace(base.train, steps=9_300),
    )
