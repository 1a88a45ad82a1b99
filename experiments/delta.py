"""How a member of a chain of experiments states what differs from what all members share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cm3jax.config import Experiment


def with_delta(experiment: Experiment, delta: Mapping[str, Any]) -> Experiment:
    """The experiment with other values of some fields.

    For a nested config, `delta` holds a dict of its fields:
    `{"learner": "clip", "data": {"batch": 256}}`.
    """
    nested = {
        field: dataclasses.replace(getattr(experiment, field), **value)
        for field, value in delta.items()
        if isinstance(value, dict)
    }
    return dataclasses.replace(experiment, **{**delta, **nested})
