"""Benchmarks, each beside what a user would otherwise pick: `python -m launch.bench NAME`."""
