"""The decoder that a bench measures: transformers' Chameleon, or an experiment's, random weights.

Chameleon has 8 layers of width 512 if nothing else is asked for; an experiment's sizes are its own.
Needs little more than jax: a bare machine has no tyro.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from cm3jax.config import DataConfig, DecoderConfig, Experiment, OptimConfig, VocabConfig
from cm3jax.errors import UserError
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.presets import load_experiment
from launch.rivals import missing


def positive(text: str) -> int:
    """An integer above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


positive.__name__ = "integer"  # as argparse calls it in a message


_CHAMELEON = {"layers": 8, "width": 512, "vocab": 16_384, "dtype": "float32", "unroll": 1}
"""What is measured if nothing else is asked for."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that choose the model."""
    add = parser.add_argument
    add("--experiment", default="", help="measure this experiment's decoder, without a rival")
    add("--batch", type=positive, default=8, help="rows of a step, or prompts")
    add("--layers", type=positive, help="layers of the Chameleon; default 8")
    add("--width", type=positive, help="width of the Chameleon; default 512; a head has 64")
    add("--vocab", type=positive, help="ids of the Chameleon; default 16384")
    add("--dtype", choices=["float32", "bfloat16"], help="type of activations; default float32")


def experiment(options: argparse.Namespace, length: int) -> Experiment:
    """The Chameleon of the options with room for `length` ids, or the experiment with its own.

    Raises `UserError` for an experiment that does not exist or is given other sizes, and for sizes
    that no Chameleon has.
    """
    given = {name: value for name in _CHAMELEON if (value := getattr(options, name, None))}
    optim = OptimConfig(
        peak_lr=1e-4, warmup_steps=1, end_lr_ratio=1.0, weight_decay=0.1, clip_norm=1.0
    )
    data = DataConfig(batch=options.batch)
    if options.experiment:
        if given:
            raise UserError(
                f"{options.experiment} has sizes of its own; leave out --{' and --'.join(given)}."
            )
        found = load_experiment(options.experiment)
        return Experiment(
            "bench",
            vocab=found.vocab,
            vqgan=found.vqgan,
            model=found.model,
            data=data,
            optim=optim,
        )
    size: dict[str, Any] = _CHAMELEON | given
    vocab = VocabConfig()
    pieces = size["vocab"] - vocab.specials - vocab.image_codes
    if pieces < 1 or size["width"] % 64:
        raise UserError(
            f"--vocab {size['vocab']} must be above {vocab.specials + vocab.image_codes}, and "
            f"--width {size['width']} a multiple of 64."
        )
    model = DecoderConfig(
        layers=size["layers"],
        width=size["width"],
        heads=size["width"] // 64,
        head_width=64,
        ffn=-(-size["width"] * 8 // 3 // 64) * 64,  # Llama's: 8/3 of the width
        context=length,
        dtype=size["dtype"],
        positions="rope",
        qk_norm=True,
        norm="rms",
        activation="swiglu",
        tied=False,
        unroll=size["unroll"],
    )
    vocab = dataclasses.replace(vocab, text_pieces=pieces)
    return Experiment("bench", vocab=vocab, model=model, data=data, optim=optim)


def random_weights(learner: DecoderLearner) -> Any:
    """Random parameters; none is zero, or a layer would do nothing in the first step."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        gain = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return (0.02 * generator.standard_normal(leaf.shape) + gain).astype(np.float32)

    variables = jax.eval_shape(learner.init, jax.random.key(0))
    shapes = jax.tree.map(lambda box: box.value, variables["params"], is_leaf=_is_box)
    return jax.tree.map_with_path(draw, shapes)


def _is_box(leaf: Any) -> bool:
    return hasattr(leaf, "names")


def no_rival(options: argparse.Namespace) -> str:
    """Why there is nothing to compare with; empty if there is."""
    return "an experiment's model has no counterpart" if options.experiment else missing()
