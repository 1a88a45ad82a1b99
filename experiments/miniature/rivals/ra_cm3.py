"""RA-CM3 among the rivals: CM3Leon with documents at a tenth of the loss, masked like the rest.

python -m launch.train miniature/rivals/ra_cm3
"""

from cm3jax.config import Experiment

from .shared import rival


def get_config() -> Experiment:
    """0 or 1 document with equal odds."""
    return rival(
        "miniature/rivals/ra_cm3",
        cm3={
            "no_documents": 0.0,
            "vary_documents": True,
            "mask_retrieved": True,
            "retrieved_weight": 0.1,
        },
    )
