"""The decoder of emoji: retrieval-augmented CM3 over 64 x 64 images of 256 codes.

    python -m launch.prepare emoji/decoder
    python -m launch.train emoji/decoder

Tokenizers and encoder are the shipped ones; the decoder was not trained to its end yet. Three
stages: a model learns to copy at all, from the record itself; from one document of its own thing,
found by the text, at another place and on another ground; and then whose document to copy from.
From then on there are two, found by text or image, in random order, and a third of the samples are
shown one of another record (`cm3.wrong_documents`), so that the model must read the names. Its
skills with names that training never showed:

    python -m launch.evaluate emoji --run runs/emoji/decoder --out emoji.json
"""

from cm3jax.config import Experiment

from .base import SHIPPED, base


def get_config() -> Experiment:
    """A decoder of 1.1 M parameters over rows of 1,120 tokens: two samples with a document each, or
    one with two and one without."""
    return base(
        "emoji/decoder",
        tokenizers={"text": f"{SHIPPED}/text", "image": f"{SHIPPED}/vqgan"},
        retrieval={"encoder": f"{SHIPPED}/clip"},
        data={"batch": 4},
        model={"token_shift": True},
        curriculum={
            "starts": (0, 500, 8000),
            "documents": (1, 1, 2),
            "queries": ("text", "text", "both"),
            "mean_masks": (0.0, 1.0, 1.0),
            "own_documents": (1.0, 0.0, 0.0),
            "wrong_documents": (0.0, 0.0, 0.35),
        },
        optim={"method": "muon", "peak_lr": 5e-3, "warmup_steps": 100},
        train={"steps": 15_000, "log_every": 50, "validate_every": 500},
        checkpoint={"every": 250},
    )
