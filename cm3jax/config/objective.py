"""The CM3 objective and the loss."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import require, require_not_negative, require_range


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is added to the mean negative log-likelihood."""

    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting
    (Chameleon: 1e-5)."""

    def __post_init__(self):
        require_not_negative(self, "loss", ["z_loss"])


@dataclasses.dataclass(frozen=True)
class CM3Config:
    """The CM3 objective: how a sample's spans move to its end (CM3Leon's section 2.2)."""

    mean_masks: float = 1.0
    """Mean of the Poisson number of masks; 0 trains a plain causal model."""
    max_masks: int = 16
    """Largest number of masks in one sample."""
    whole_segment: float = 0.5
    """Probability that a mask is one whole segment instead of a random span."""
    picture_rows: float = 0.0
    """Probability that a random span of an image is widened to whole rows of its codes."""
    mask_retrieved: bool = False
    """Also mask retrieved documents (metaseq's way); always on with `data.rows=stream`."""
    no_documents: float = 0.2
    """Probability that a sample is shown without its documents."""
    vary_documents: bool = False
    """Show each of the other samples a number of documents drawn uniformly from 0 to
    retrieval.documents (RA-CM3), instead of all."""
    wrong_documents: float = 0.0
    """Probability that a random record's document replaces the last of a sample's documents, or is
    added where there are fewer than retrieval.documents. A model that copies whatever it is shown
    is then wrong, and must read whose document it is."""
    own_documents: float = 0.0
    """Probability that a sample's only document is the record itself: a first lesson in copying,
    for a stage of `curriculum`. A model that is taught nothing else copies whatever it is shown."""
    shuffle_documents: bool = False
    """Show a sample's documents in random order instead of the best one (or, with
    retrieval.clauses, the first clause's) first."""
    retrieved_weight: float = 1.0
    """Loss weight of retrieved documents (1 in CM3Leon, 0.1 in RA-CM3)."""
    loss_on: Literal["all", "answer"] = "all"
    """What the loss counts in a sample with an answer (instruction tuning): everything (the paper's
    way), or only the answer and the id that ends it."""

    def __post_init__(self):
        for name in (
            *("whole_segment", "picture_rows"),
            *("no_documents", "wrong_documents", "own_documents"),
        ):
            value = getattr(self, name)
            require(0 <= value <= 1, f"cm3.{name}={value} is a probability; give 0 to 1.")
        require_not_negative(self, "cm3", ("mean_masks", "retrieved_weight"))
        require_range(self, "cm3", ["max_masks"], least=0)
