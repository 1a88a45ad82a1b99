"""Benchmarks against what a user would otherwise pick: `python -m launch.bench NAME`."""
