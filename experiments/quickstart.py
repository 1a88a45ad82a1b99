"""The quickstart: the whole chain from scratch in a few minutes on two CPU cores.

    bash launch/quickstart.sh

The experiment `quickstart` is the chain's decoder; `chain` gives every member in the order in which
they need each other. Minutes are too few to learn what the miniature's shipped weights know: the
report says what came of it.
"""

from cm3jax.config import Experiment

from .miniature.base import base

_HOME = "quickstart"


def chain() -> dict[str, Experiment]:
    """Text tokenizer, image tokenizer, retrieval encoder and decoder, in the order of training."""
    data = {"records": 16_000, "emblems": 3_000}
    text = base(
        "quickstart/text",
        _HOME,
        learner="text_tokenizer",
        data=data,
        train={"steps": 1},
    )
    vqgan = base(
        "quickstart/vqgan",
        _HOME,
        learner="vqgan",
        data=data | {"batch": 32},
        optim={
            "peak_lr": 4e-3,
            "warmup_steps": 50,
            "end_lr_ratio": 0.02,
            "weight_decay": 0.0,
        },
        train={"steps": 1600, "log_every": 100, "validate_every": 800},
        checkpoint={"every": 400},
    )
    clip = base(
        "quickstart/clip",
        _HOME,
        learner="clip",
        data=data | {"batch": 128},
        optim={"peak_lr": 1e-3, "warmup_steps": 20},
        train={"steps": 120, "validate_every": 60},
        checkpoint={"every": 40},
    )
    decoder = base(
        "quickstart",
        _HOME,
        workdir=f"runs/{_HOME}/decoder",
        data=data | {"batch": 8},
        retrieval={"relevance_floor": -1.0},  # an encoder of seconds scores on another scale
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 50},
        train={"steps": 250, "validate_every": 125, "log_every": 25},
        checkpoint={"every": 50},
    )
    return {"text": text, "vqgan": vqgan, "clip": clip, "decoder": decoder}


def get_config() -> Experiment:
    """The decoder of the quickstart's chain."""
    return chain()["decoder"]
