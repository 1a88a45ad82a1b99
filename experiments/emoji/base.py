"""What all members of the emoji chain share, and how each states what differs."""

from typing import Any

from cm3jax.config import CM3Config, DecodeConfig, Experiment

from ..chain import Choices, chain_base
from ..delta import with_delta

_HOME = "emoji"
_CHOICES = Choices(side=64, codes=256, codebook=1024, pieces=1024, width=128, context=1120)

SHIPPED = "experiments/emoji/weights"
"""The weights in the repository: what a member reads that does not train it itself."""


def base(name: str, **delta: Any) -> Experiment:
    """The experiment `name`; `delta` is as `experiments.delta.with_delta` takes it."""
    experiment = with_delta(
        chain_base(name, _CHOICES, f"runs/{_HOME}", f"data/{_HOME}"),
        {
            # One code per 4x4 pixels and nothing shared between patches: the inside of a thing has
            # the same codes on every ground, so that a decoder can copy it from a document. Codes
            # of larger fields lose less, and change with what is next to them.
            "vqgan": {
                "code_width": 32,
                "commitment": 1.0,
                "ema_decay": 0.99,
                "restart_below": 0.01,
            },
            # A name's own image is learnt by heart, which says nothing of names to come. Things
            # are at multiples of 8 pixels: patches of 8 cut a thing alike at every place (those
            # of 16 found 6 % of large things in the centre by their image, 16 % in the corners).
            "clip": {"pair_loss": 0.25, "patch": 8},
            # A document is of use only to a model that reads its name: a third of the samples see
            # one of another record, and order says nothing. The last document gives way, in a pair
            # that of its second thing, hence not more. Documents weigh more than in the miniature:
            # two of one thing teach copying too.
            "cm3": CM3Config(
                no_documents=0.15,
                mean_masks=1.0,
                whole_segment=0.5,
                picture_rows=0.7,
                retrieved_weight=0.3,
                wrong_documents=0.35,
                shuffle_documents=True,
            ),
            "retrieval": {"relevance_cut": 1.0, "diversity_cut": 1.0, "clauses": True},
            "decode": DecodeConfig(temperature=0.5),
            "data": {"source": "emoji", "records": 40_000},
        },
    )
    return with_delta(experiment, delta)
