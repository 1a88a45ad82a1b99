"""Only whole segments: a caption or an image, never a part of one.

python -m launch.train miniature/masking/whole
"""

from cm3jax.config import Experiment

from ..rivals.shared import MEDIUM, rival


def get_config() -> Experiment:
    """Every mask is a whole segment."""
    return rival("miniature/masking/whole", model=MEDIUM, cm3={"whole_segment": 1.0})
