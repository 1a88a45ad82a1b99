"""The miniature's decoder: retrieval-augmented CM3 over 32x32 emblems.

    python -m launch.prepare miniature/decoder
    python -m launch.train miniature/decoder

Needs the runs `miniature/text`, `miniature/vqgan` and `miniature/clip`. The preset mixes what the
shipped weights were taught in turns, each starting from the parameters of the one before
(`--init-from`); as one run from scratch it was not tried. On two Intel Xeon cores that other work
shared, jax 0.10.2, 5,000 tokens a second, muon, batches of 8 rows:

- 21,084 steps of everything, while settings changed (16,000 of them in 93 minutes);
- 4,000 of `--data.mixture data/miniature:scene 1 --cm3.no-documents 1`, peak rate 6e-3, 26 minutes:
  captions went from 4 to 85 %;
- 6,500 of scenes, pairs and everything, 2 : 2 : 1, `--cm3.no-documents 0.3`, 5e-3, 36 minutes;
- 1,900 of scenes, pairs and emblems, 2 : 2 : 1.5, 0.2, 3e-3, 10 minutes, every second emblem with
  one document instead of two.

What it can do stands in the README. Generation shows two documents of one emblem
(`retrieval.diversity_cut` 0.99 in the weights' config), training showed different ones.
"""

from cm3jax.config import Experiment
from experiments.miniature.base import base


def get_config() -> Experiment:
    """A decoder of 1 M parameters over rows of 256 tokens."""
    return base(
        "miniature/decoder",
        data={
            "batch": 8,
            "mixture": (
                ("data/miniature:scene", 2.0),
                ("data/miniature:pair", 2.0),
                ("data/miniature:emblem", 1.5),
                ("data/miniature", 1.0),
            ),
        },
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100},
        train={"steps": 32_000},
        checkpoint={"every": 500},
    )
