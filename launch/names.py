"""Experiments by name, the shipped weights, and what a mistyped name was meant to be."""

from pathlib import Path

from cm3jax.errors import nearest
from cm3jax.presets import experiment_names, load_experiment

__all__ = ["SHIPPED", "experiment_names", "load_experiment", "nearest"]

SHIPPED = Path(__file__).resolve().parent.parent / "experiments" / "miniature" / "weights"
"""Runs `text`, `vqgan`, `clip`, `decoder` and `sft` that come with the checkout."""
