"""The members of the chain for a user's own folder, all from the same choices."""

from cm3jax.config import CM3Config, DecodeConfig, Experiment, VQGANConfig

from ..chain import SMALL, Choices, chain_base
from ..delta import with_delta

_SOURCE = "pictures"


def chain(
    choices: Choices = SMALL,
    source: str = _SOURCE,
    runs: str = "runs/folder",
    data: str = "data/folder",
) -> dict[str, Experiment]:
    """Text tokenizer, image tokenizer, retrieval encoder and decoder, in the order of training.

    `source` is as `data.source`; the members' runs are in the folder `runs`, the corpus and the
    bank in `data`.
    """

    def member(part: str, **delta) -> Experiment:
        shared = with_delta(chain_base(f"folder/{part}", choices, runs, data), _shared(choices))
        own = delta | {"data": {"source": source, **delta.get("data", {})}}
        return with_delta(shared, own | {"workdir": f"{runs}/{part}"})

    return {
        "text": member("text", learner="text_tokenizer", train={"steps": 1}),
        "vqgan": member(
            "vqgan",
            learner="vqgan",
            data={"batch": 16},
            optim={"peak_lr": 1e-3, "warmup_steps": 50, "end_lr_ratio": 0.02, "weight_decay": 0.0},
            train={"steps": 2500, "log_every": 50, "validate_every": 250},
            checkpoint={"every": 250},
        ),
        "clip": member(
            "clip",
            learner="clip",
            data={"batch": 128},
            optim={"peak_lr": 1e-3, "warmup_steps": 50},
            train={"steps": 600, "log_every": 25, "validate_every": 100},
            checkpoint={"every": 50},
        ),
        "decoder": member(
            "decoder",
            data={"batch": 8},
            # What copies sooner has more of its few steps left for the rest.
            model={"token_shift": True},
            optim={"method": "muon", "peak_lr": 1e-2, "warmup_steps": 100},
            train={"steps": 5000, "log_every": 50, "validate_every": 250},
            checkpoint={"every": 250},
        ),
    }


def _shared(choices: Choices) -> dict:
    """What all members of this chain share beyond any chain's base."""
    return {
        "vqgan": _vqgan(choices),
        # Captions of a folder seldom name their subjects: those that share rare words are partners.
        "clip": {"partners": "nearest"},
        # A document is of use only to a model that reads it: a third of the samples see one of
        # another record, and their order says nothing.
        "cm3": CM3Config(
            no_documents=0.2,
            picture_rows=0.7,
            retrieved_weight=0.3,
            wrong_documents=0.35,
            shuffle_documents=True,
        ),
        # Scores of an encoder that was trained on any folder are on no known scale. A record's own
        # image is never shown to it, whatever these are.
        "retrieval": {"relevance_cut": 1.0, "diversity_cut": 1.0},
        "decode": DecodeConfig(temperature=0.7),
    }


def _vqgan(choices: Choices) -> VQGANConfig:
    """A small convolutional tokenizer: of real images it keeps more than patches apart do.

    Its first level has patches of 2 pixels, from 256 pixels on of 4; each further one halves.
    """
    field = choices.side // choices.grid
    patch = min(4 if choices.side == 256 else 2, field)
    levels = (field // patch).bit_length()
    return VQGANConfig(
        image_size=choices.side,
        patch=patch,
        channels=48,
        multipliers=(1, 2, 2)[:levels],
        blocks=1,
        attention=False,
        codes=choices.codebook,
        code_width=64,
    )
