"""Random spans alone: the setting that metaseq's code ships, in which captions are hardly masked.

python -m launch.train miniature/masking/spans
"""

from cm3jax.config import Experiment
from experiments.miniature.rivals.shared import rival


def get_config() -> Experiment:
    """No mask is a whole segment."""
    return rival("miniature/masking/spans", cm3={"whole_segment": 0.0})
