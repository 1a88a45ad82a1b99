"""The miniature's instruction tuning: eleven tasks on 32x32 emblems.

    python -m launch.prepare miniature/sft
    python -m launch.train miniature/sft
    python -m launch.evaluate tasks --run runs/miniature/sft \
        --before experiments/miniature/weights/decoder

Starts from the shipped decoder. The loss is on the answers alone: a model of this size has none to
spare for predicting maps and questions. `launch.prepare show` draws a row of the first task, of
another one with `--data.tasks --data.mixture data/miniature_sft/vqa 1`.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base

_WEIGHTS = "experiments/miniature/weights"
_TASKS = (
    *("words", "editing", "segmentation", "edges", "depth", "grounded"),
    *("caption", "long_caption", "vqa", "science", "story"),
)


def get_config() -> Experiment:
    """The decoder of 1 M parameters, on a mixture of the tasks."""
    return base(
        "miniature/sft",
        init_from=f"{_WEIGHTS}/decoder",
        tokenizers={"text": f"{_WEIGHTS}/text", "image": f"{_WEIGHTS}/vqgan"},
        cm3={"loss_on": "answer"},
        data={
            "batch": 8,
            "records": 20_000,
            "corpus": "",
            "bank": "",
            "tasks": tuple((task, "emblems") for task in _TASKS),
            "mixture": tuple((f"data/miniature_sft/{task}", 1.0) for task in _TASKS),
            "resample": (0.3, 3.0),
        },
        optim={"method": "muon", "peak_lr": 5e-3, "warmup_steps": 100},
        train={"steps": 40_000},
        checkpoint={"every": 500},
        decode={"max_text_tokens": 128},
    )
