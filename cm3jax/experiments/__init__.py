"""The presets: in a checkout, this package's modules are the files of `experiments/` at its top.

An installed library has them here: `setup.py` puts that folder in this one's place.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "experiments")]
