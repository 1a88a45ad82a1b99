"""The decoder of emoji: retrieval-augmented CM3 over 64 x 64 pictures of 256 codes.

    python -m launch.prepare emoji/decoder
    python -m launch.train emoji/decoder

Needs the runs `emoji/text`, `emoji/vqgan` and `emoji/clip`. Documents stand in random order, and a
third of the samples are shown one of another record (`cm3.wrong_documents`), so that the model must
read whose document it is. Its skills with names that training never showed:

    python -m launch.evaluate emoji --run runs/emoji/decoder --out emoji.json
"""

from cm3jax.config import Experiment
from cm3jax.experiments.emoji.base import base


def get_config() -> Experiment:
    """A decoder of 1.1 M parameters over rows of 928 tokens: two documents and what is asked."""
    return base(
        "emoji/decoder",
        data={"batch": 4},
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100},
        train={"steps": 45_000, "log_every": 50, "validate_every": 1000},
        checkpoint={"every": 250},
    )
