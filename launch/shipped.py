"""The weights that come with a checkout."""

from pathlib import Path

SHIPPED = Path(__file__).resolve().parent.parent / "experiments" / "miniature" / "weights"
"""Runs `text`, `vqgan`, `clip`, `decoder` and `sft`."""
