"""The miniature's decoder: retrieval-augmented CM3 over 32x32 emblems.

    python -m launch.prepare miniature/decoder
    python -m launch.train miniature/decoder

Needs the runs `miniature/text`, `miniature/vqgan` and `miniature/clip`. Preparing took eight
minutes and 16,000 steps 93 on two Intel Xeon cores that other work shared (jax 0.10.2; from step
519 on with MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at gigabytes, which raised 4,800
tokens a second to 6,200). The shipped weights are that run's, but its first 8,435 steps had
`cm3.no_documents` 0.2 and `cm3.mean_masks` 1; a run from scratch was not tried.

`python -m launch.evaluate emblems --run experiments/miniature/weights/decoder`, 200 prompts each:
memory-only emblems drawn exactly with 0 / 1 / 2 documents 0 / 95 / 95.5 %, two of them in a picture
0 / 0 / 22.5 %, plain scenes 99.5 %; captions 7 %, lower halves 0.5 %. Validation losses still fell
when it ended: the last three want more steps, which `--train.steps` adds to a run.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """A decoder of 1 M parameters over rows of 256 tokens."""
    return base(
        "miniature/decoder",
        data={"batch": 8},
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100},
        train={"steps": 16_000},
        checkpoint={"every": 500},
    )
