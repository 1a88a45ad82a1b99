"""CM3Leon in JAX: retrieval-augmented, token-based generation of text and images.

    import cm3jax

    model = cm3jax.load("experiments/miniature/weights/decoder")   # a Generator
    model.generate("the zubetu emblem at the bottom right on sky", retrieve=2).image

What is here, each imported when it is first used:

    load(RUN)               the Generator of a trained decoder, with tokenizers and retrieval
    Generator               text → image, image → text, infilling, editing, scoring
    Document                a text, an image, or both, to show in front of a prompt
    load_experiment(NAME)   a preset, e.g. "cm3leon_7b", as an Experiment
    Experiment              everything that decides a run: a frozen dataclass of dataclasses

and the three Flax modules, pure functions of their variables, that run under `jax.jit` on any mesh:

    TokenizerBridge         pixels and text pieces ↔ ids of the one vocabulary
    SequenceBuilder         memory bank → retrieved documents → rows of the CM3 objective
    Decoder                 ids → hidden states → logits

`help` of each says more. Images are numpy arrays, uint8, height x width x 3. Bad input raises
`cm3jax.errors.UserError`, whose one sentence says what is wrong and what to do. Commands (`python
-m launch.train …`) run from a checkout, whose docs/python.md and docs/tutorial.ipynb show more.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3jax.config import CacheType, Experiment, WeightType
    from cm3jax.generation.documents import Document
    from cm3jax.generation.generator import Generator
    from cm3jax.model.bridge import TokenizerBridge as TokenizerBridge
    from cm3jax.model.decoder import Decoder as Decoder
    from cm3jax.model.sequence_builder import SequenceBuilder as SequenceBuilder
    from cm3jax.presets import load_experiment

__version__ = "0.2.0"

# What `help(cm3jax)` explains in full. Under each of the three modules it would put Flax's own
# manual, a thousand lines, which `help(cm3jax.Decoder)` has.
__all__ = ["Document", "Experiment", "Generator", "load", "load_experiment"]

_HOMES = {
    "Decoder": "cm3jax.model.decoder",
    "Document": "cm3jax.generation.documents",
    "Experiment": "cm3jax.config",
    "Generator": "cm3jax.generation.generator",
    "SequenceBuilder": "cm3jax.model.sequence_builder",
    "TokenizerBridge": "cm3jax.model.bridge",
    "load_experiment": "cm3jax.presets",
}


def load(
    run_dir: str | os.PathLike,
    bank: str | os.PathLike = "",
    weights: "WeightType" = "",
    cache: "CacheType" = "",
    prefix_cache: int = 0,
) -> "Generator":
    """The generator of a trained decoder: `cm3jax.load(run).generate("…", retrieve=2).image`.

        run_dir       a run directory (its newest sound checkpoint is read), exported weights, or
                      `hf:OWNER/NAME`: a run on the hub, as it is now, that
                      `launch.convert export RUN --push` uploaded
        bank          the memory bank to retrieve from; by default the run's own
        weights       type that the matrices are kept in, "int8", "int4" or "fp8"
        cache         type that keys and values are kept in, "int8"
        prefix_cache  bytes for what was read of prompts: those that begin alike, say with the same
                      documents, then cost less

    An empty `weights` or `cache` leaves the run's own type. The tokenizers and the retrieval
    encoder are those that the run was trained with, found beside it; encoder and bank are opened
    when documents are first asked for. Compiled programs are kept for the next process, unless jax
    was told where to keep them, or not to. Raises `cm3jax.errors.UserError` for what is missing or
    does not belong together.
    """
    from cm3jax.generation import loading
    from cm3jax.training.hub_runs import is_hub_id, newest_snapshot
    from cm3jax.training.program_cache import use_program_cache

    use_program_cache()
    where = newest_snapshot(run_dir) if is_hub_id(run_dir) else run_dir
    return loading.load(where, bank, weights=weights, cache=cache, prefix_cache=prefix_cache)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
