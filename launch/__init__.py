"""Thin entry points, run from a checkout as `python -m launch.NAME`: parse, override, call."""
