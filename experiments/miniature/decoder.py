"""The miniature's decoder: retrieval-augmented CM3 over 32x32 emblems.

    python -m launch.prepare miniature/decoder
    python -m launch.train miniature/decoder

Tokenizers and encoder are the shipped ones. A chain of one's own is trained first, and named:

    python -m launch.train miniature/text
    python -m launch.train miniature/vqgan
    python -m launch.train miniature/clip --tokenizers.text runs/miniature/text
    python -m launch.prepare miniature/decoder --tokenizers.text runs/miniature/text \
        --tokenizers.image runs/miniature/vqgan --retrieval.encoder runs/miniature/clip

and `launch.train miniature/decoder` takes the same three options. Its curriculum is what the
shipped weights were taught, in five stages instead of thirteen phases, and names bind documents in
it: from the third stage on samples are shown two in random order, a third of them one of another
record; the last stage shows one or none as well, as images are asked for. The learning rate falls
as it did over the phases.

It was not trained to its end yet. The shipped weights are those of the phases, each of which
started from the parameters of the one before (`--init-from`). On two Intel Xeon cores that other
work shared, jax 0.10.2, about 5,500 tokens a second, muon, batches of 8 rows, 5.7 hours in all:

- 21,084 steps of everything, while settings changed;
- 4,000 of `--data.mixture data/miniature:scene 1 --cm3.no-documents 1`, peak rate 6e-3;
- 6,500 of scenes, pairs and everything, 2 : 2 : 1, `--cm3.no-documents 0.3`, 5e-3;
- 1,900 of scenes, pairs and emblems, 2 : 2 : 1.5, 0.2, 3e-3, every second emblem with one document;
- 3,000 of scenes only, 6e-3; from here on with `--cm3.picture-rows 0.7` or 0.8 (15 % of
  lower halves were infilled exactly before);
- 2,000 of pairs and scenes, 4 : 1.5, 0, 6e-3;
- 2,715 of scenes, pairs and emblems, 3 : 3 : 1.2, 0.1, 5e-3;
- 5,500 of the same, 4 : 3 : 0.8, 0.05, 5e-3 falling to 5e-4: infilling went from 25 to 94 %
  (teacher-forced) in its last 2,500, as the rate fell;
- 393 of the same, 3 : 3 : 2, 1e-3, `--cm3.vary-documents`;
- 1,600 of the same, 2 : 4 : 1, 0.03, `--retrieval.queries text`, 1.2e-3;
- 700 of the same, 2 : 4 : 1.5, `--cm3.vary-documents`, 6e-4 falling to 6e-5;
- 1,000 of 2,000 of the same, 3 : 4 : 1.5, 1e-3, from here on with documents in the order of the
  clauses that found them (they were shuffled before, and pairs were 56 % right);
- 1,200 of the same, 3 : 2 : 3, `--cm3.vary-documents`, 8e-4 falling to 4e-5.

They are stored as bfloat16, half as large as float32: of the scores of docs/claims.md none changed
by more than 0.8 points. docs/evaluation.md says what they can do. Generation shows two documents of
one emblem (`retrieval.diversity_cut` 0.99 in the weights' config), training showed different ones.
"""

from cm3jax.config import Experiment

from .base import SHIPPED, base


def get_config() -> Experiment:
    """A decoder of 1 M parameters over rows of 256 tokens."""
    return base(
        "miniature/decoder",
        tokenizers={"text": f"{SHIPPED}/text", "image": f"{SHIPPED}/vqgan"},
        retrieval={"encoder": f"{SHIPPED}/clip"},
        data={
            "batch": 8,
            "mixture": (
                ("data/miniature:scene", 2.0),
                ("data/miniature:pair", 2.0),
                ("data/miniature:emblem", 1.5),
                ("data/miniature", 1.0),
            ),
        },
        # As images are asked for: with none, one or two documents, whose order says nothing.
        cm3={
            "no_documents": 0.05,
            "vary_documents": True,
            "wrong_documents": 0.35,
            "shuffle_documents": True,
        },
        curriculum={
            "starts": (0, 21_000, 25_000, 33_000, 46_500),
            "mixture": (
                *(0.0, 0.0, 0.0, 1.0),  # everything, half of it behind one document
                *(1.0, 0.0, 0.0, 0.0),  # drawing scenes from the text only
                *(2.0, 2.0, 1.0, 1.0),  # whose document it is
                *(3.0, 3.0, 1.2, 0.0),
                *(3.0, 2.0, 3.0, 0.0),
            ),
            "documents": (1, 1, 2, 2, 2),
            "queries": ("text", "text", "both", "both", "both"),
            "no_documents": (0.1, 1.0, 0.3, 0.1, 0.05),
            "wrong_documents": (0.0, 0.0, 0.35, 0.35, 0.35),
            # Where the number varies, most samples lack the document that could be a wrong one.
            "vary_documents": (False, False, False, False, True),
        },
        optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100, "end_lr_ratio": 0.005},
        train={"steps": 51_500},
        checkpoint={"every": 500},
    )
