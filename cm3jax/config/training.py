"""The optimiser, the training run, its checkpoints and its mesh."""

import dataclasses
import re
from typing import Literal

from cm3jax.config.checks import (
    COUNTED,
    require,
    require_decays,
    require_not_negative,
    require_range,
)
from cm3jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser: linear warm-up, then linear decay (an assumption: the paper names none)."""

    method: Literal["adamw", "muon"] = "adamw"
    """AdamW throughout (the papers), or Muon for the decoder's matrix products and AdamW for the
    rest (arXiv 2502.16982, whose scaling lets both share a learning rate). With Muon, beta1, beta2
    and eps apply to the rest only, and weight decay to the matrix products only: embedding and
    position tables have none."""
    peak_lr: float = 6e-4
    """Learning rate after the warm-up."""
    warmup_steps: int = 1500
    """Steps of linear warm-up from 0."""
    end_lr_ratio: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.98
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors and norms have none."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    accumulate: int = 1
    """Number of parts of a global batch that are processed one after another before each update:
    the same update with less memory (decoder only)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the parameters, e.g. 0.9999; 0 keeps none. Where it
    is kept, validation, samples, generation and exports use the averages, and checkpoints hold both
    (4 bytes more per trained parameter)."""
    trained: str = ""
    """Regular expression that is searched in the names of parameters (`layers/query/kernel`):
    parameters without a match are frozen and keep no moments, and a table at start lists which are
    trained. Examples: `lora|^head`, `feed_forward`, or `decoder` for an image tokenizer. Empty
    trains everything, or only the corrections where model.lora_rank is set."""
    trained_ids: Literal["all", "image", "text"] = "all"
    """Which ids' rows of the embedding and the head change, where these are trained. Anole taught
    Chameleon to draw by training only the head's rows of image codes (`--optim.trained ^head
    --optim.trained-ids image`)."""

    def __post_init__(self):
        try:
            re.compile(self.trained)
        except re.error as error:
            raise UserError(
                f"optim.trained={self.trained!r} is not a regular expression ({error}); correct it."
            ) from None
        require_range(self, "optim", ["warmup_steps"], 0, COUNTED)
        require(self.peak_lr > 0, f"optim.peak_lr={self.peak_lr} must be positive.")
        require_decays(self, "optim", ("beta1", "beta2", "ema"))
        require_not_negative(self, "optim", ("end_lr_ratio", "eps", "weight_decay"))
        require(self.clip_norm > 0, f"optim.clip_norm={self.clip_norm} must be positive.")
        require_range(self, "optim", ["accumulate"])


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 175_000
    """Optimiser steps in all. A resumed run may be given more or fewer: from there on the learning
    rate follows the schedule that ends at the new number, unless optim.end_lr_ratio is 1."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    validate_every: int = 1000
    """Steps between two measurements of the validation loss; 0 never."""
    validation_batches: int = 8
    """Batches of one validation."""
    samples: int = 8
    """Images that the report shows at each validation: drawn for captions (decoder), or encoded
    and decoded (image tokenizer); 0 shows none. They are one small batch, drawn with the parameters
    in memory; a run of several processes draws none."""
    watchdog_seconds: int = 600
    """Print the stacks of all threads, and continue, whenever no step ends for this many seconds; 0
    never does. The first step includes its compilation."""
    profile: str = ""
    """First and last step to trace, e.g. `20:25`; empty traces none. The trace is kept in
    RUN/profile, for XProf and Perfetto, and report.html shows the time by operation. Traced steps
    are slower, and the first step after each start of a run compiles."""
    tracker: Literal["", "trackio", "wandb"] = ""
    """An experiment tracker that gets what metrics.jsonl gets; its extra has the same name."""

    def __post_init__(self):
        steps = re.fullmatch(r"[0-9]{1,9}:[0-9]{1,9}", self.profile)
        require(
            not self.profile or (steps is not None and 0 not in self.traced and any(self.traced)),
            f"train.profile={self.profile} must be two steps such as 20:25, from 1 on, the "
            "first not after the last.",
        )
        counts = ("steps", "log_every", "validation_batches")
        require_range(self, "train", counts, most=COUNTED)
        none = ("validate_every", "samples", "watchdog_seconds")
        require_range(self, "train", none, 0, COUNTED)

    @property
    def traced(self) -> range:
        """The steps of `profile`; none where it is empty."""
        if not self.profile:
            return range(0)
        first, last = map(int, self.profile.split(":"))
        return range(first, last + 1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saving."""

    every: int = 1000
    """Steps between two saves; the last step and the best validation so far are always saved."""
    keep: int = 2
    """Newest checkpoints kept, in addition to that of the best validation (lowest `loss_valid`)."""

    def __post_init__(self):
        require_range(self, "checkpoint", ("every", "keep"), most=COUNTED)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; one may be -1 and takes the rest of the devices."""

    data: int = -1
    """Copies of the parameters; each sees its share of the batch."""
    fsdp: int = 1
    """Shards of the parameters along the batch (fully sharded data parallelism)."""
    tensor: int = 1
    """Shards of heads, feed-forward width and vocabulary."""
    platform: Literal["", "cpu", "gpu", "tpu"] = ""
    """Hardware that the run requires; empty takes whatever jax finds, also a CPU."""

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        require(
            sizes.count(-1) <= 1 and all(size == -1 or size >= 1 for size in sizes),
            f"mesh sizes {sizes} must be positive, and at most one may be -1.",
        )


ONE_DEVICE = MeshConfig(data=1)
"""The mesh that generation runs on unless asked for another."""
