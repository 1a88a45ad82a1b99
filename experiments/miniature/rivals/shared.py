"""What the rivals share: two of them differ only in objective or architecture."""

import dataclasses
from typing import Any

from cm3jax.config import Experiment

from ..base import SHIPPED, base

MEDIUM = {"width": 64, "ffn": 256}
"""What `medium` makes of a model."""


def rival(name: str, **delta: Any) -> Experiment:
    """The experiment `name`; `delta` is as in `base`."""
    shared = {
        "tokenizers": {"text": f"{SHIPPED}/text", "image": f"{SHIPPED}/vqgan"},
        "retrieval": {
            "encoder": f"{SHIPPED}/clip",
            "documents": 1,
            # Both candidates show what the caption names, so that either may be shown.
            "diversity_cut": 0.99,
            "queries": "text",
        },
        # As in the paper, but for what a rival states; the shipped decoder was taught otherwise.
        "cm3": {
            "mean_masks": 1.0,
            "whole_segment": 0.5,
            "picture_rows": 0.0,
            "no_documents": 0.2,
            "retrieved_weight": 1.0,
        },
        "data": {"batch": 8, "records": 40_000},
        "optim": {
            "method": "muon",
            "peak_lr": 1e-2,
            "warmup_steps": 100,
            "end_lr_ratio": 0.02,
        },
        "train": {"steps": 4000, "validate_every": 1000, "samples": 0},
        "checkpoint": {"every": 500},
    }
    for field, value in delta.items():
        nested = isinstance(value, dict) and field in shared
        shared[field] = shared[field] | value if nested else value
    return base(name, "rivals", **shared)


def medium(experiment: Experiment) -> Experiment:
    """A rival half as wide, trained as long; its heads are as many."""
    return _resized(experiment, "medium", MEDIUM)


def small(experiment: Experiment) -> Experiment:
    """A rival of half the layers, a quarter as wide, trained as long; its heads are as many."""
    halves = {"layers": experiment.model.layers // 2, "unroll": experiment.model.unroll // 2}
    encoder = dataclasses.replace(
        experiment.parti, encoder_layers=experiment.parti.encoder_layers // 2
    )
    smaller = _resized(experiment, "small", {"width": 32, "ffn": 128} | halves)
    return dataclasses.replace(smaller, parti=encoder)


def _resized(experiment: Experiment, size: str, model: dict[str, Any]) -> Experiment:
    decoder = dataclasses.replace(experiment.model, **model)
    return dataclasses.replace(experiment, name=f"{experiment.name}_{size}", model=decoder)
