"""Only random spans: the setting that metaseq's code ships, in which captions are hardly masked.

python -m launch.train miniature/masking/spans
"""

from cm3jax.config import Experiment

from ..rivals.shared import MEDIUM, rival


def get_config() -> Experiment:
    """No mask is a whole segment."""
    return rival("miniature/masking/spans", model=MEDIUM, cm3={"whole_segment": 0.0})
