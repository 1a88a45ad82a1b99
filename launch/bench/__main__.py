"""Runs one of the benchmarks: `python -m launch.bench NAME`."""

from launch.bench.command import run
from launch.env import main

if __name__ == "__main__":
    main(run)
