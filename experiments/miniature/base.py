"""What all members of the miniature share, and how each states what differs."""

from typing import Any

from cm3jax.config import CM3Config, DecodeConfig, Experiment

from ..chain import Choices, chain_base
from ..delta import with_delta

_CHOICES = Choices(side=32, codes=16, codebook=1024, pieces=512, width=128, context=256)

SHIPPED = "experiments/miniature/weights"
"""The weights in the repository: what an experiment reads that does not train it itself."""


def base(name: str, home: str = "miniature", **delta: Any) -> Experiment:
    """The miniature's experiment `name`, whose chain of runs lives under `runs/HOME`.

    `delta` holds what differs: values of `Experiment` fields, or for a nested config a dict of its
    fields, e.g. `base("miniature/clip", learner="clip", data={"batch": 256})`.
    """
    experiment = with_delta(
        chain_base(name, _CHOICES, f"runs/{home}", f"data/{home}"),
        {
            # One code per 8x8 pixels and nothing shared between patches: a code says what its cell
            # shows, whatever is next to it.
            "vqgan": {
                "code_width": 64,
                # A code is chosen once in a thousand images or in every image: the averages
                # must catch up with the encoder, which must not run away from them.
                "commitment": 1.0,
                "ema_decay": 0.97,
                "restart_below": 0.003,
            },
            # A name's own image is learned by heart, which says nothing of names to come.
            "clip": {"text_context": 40, "pair_loss": 0.25},
            # Captioning and infilling are asked for without documents, and are learnt from masks
            # alone: with a fifth of bare samples and one mask each they come far behind drawing,
            # and whole segments say little of where a span begins; rows of an image teach counting
            # inside one. Documents in full weight drown them.
            "cm3": CM3Config(
                no_documents=0.5,
                mean_masks=1.5,
                whole_segment=0.3,
                picture_rows=0.7,
                retrieved_weight=0.1,
            ),
            "retrieval": {
                "relevance_cut": 0.95,
                # Between a plain scene's best neighbours (up to 0.47) and other emblems (from 0.5).
                "relevance_floor": 0.48,
                # The second document shows another emblem: two of the same would not teach the
                # decoder to read names (the model then took either of two documents, as by a coin).
                "diversity_cut": 0.6,
                # A name is three syllables: a query that lost some of them finds another emblem,
                # hence one view.
                "clauses": True,
            },
            # What a caption and its documents say decides every code: nothing is left to chance.
            # And no instruction was hidden in training: an edit is guided by none (of 60, 52 are
            # right without guidance, 4 with the paper's scales).
            "decode": DecodeConfig(temperature=0.1, edit_scales=(1.0, 1.0)),
            # More looks than a small model learns by heart before it learns to copy.
            "data": {"records": 80_000, "emblems": 16_000},
        },
    )
    return with_delta(experiment, delta)
