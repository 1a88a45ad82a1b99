"""How long the stages of a chain take on this machine, by formula and a measured rate: roughly."""

import math
import time

import jax
import jax.numpy as jnp

from cm3jax.config import Experiment
from cm3jax.learners.clip import couple_work
from cm3jax.learners.decoder import decoder_work
from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.sequence.vocab import Vocab

_SHARE = 0.25
"""Share of the rate of large matrix products that the training of a small model reaches."""
_READ = 0.005
"""Seconds to decode an image of a photograph's size."""
_COMPILE = 20.0
"""Seconds until a training's first step has run."""


def product_rate(repeats: int = 3) -> float:
    """Operations per second of a large float32 matrix product on one device, at its best, measured
    here and now."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    multiply = jax.jit(jnp.matmul)
    matrix = jnp.ones((side, side), jnp.float32)
    multiply(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2.0 * side**3 / min(seconds)


def training_seconds(member: Experiment, records: int, rate: float) -> int:
    """Seconds that a member trains, including one pass over its source of `records` records."""
    if member.learner == "text_tokenizer":
        return math.ceil(1 + records * 1e-4)
    work = {
        "vqgan": lambda: VQGANLearner(member).work,
        "clip": lambda: couple_work(member.clip, 2 * member.data.batch, member.clip.text_context),
        "decoder": lambda: decoder_work(member.model, member.data.batch, Vocab(member.vocab).size),
    }[member.learner]()
    read = 0 if member.learner == "decoder" else records * _READ
    return math.ceil(_COMPILE + read + member.train.steps * work.flops / (rate * _SHARE))


def preparing_seconds(members: dict[str, Experiment], records: int, rate: float) -> int:
    """Seconds to read, tokenise and embed `records` records twice: for the bank and the corpus."""
    forward = 0.0
    for part in ("vqgan", "clip"):
        member = members[part]
        steps = training_seconds(member, 0, rate) - _COMPILE
        forward += steps / member.train.steps / member.data.batch / 3
    return math.ceil(_COMPILE + 2 * records * (_READ + forward))


def drawing_seconds(decoder: Experiment, prompts: int, settings: int, rate: float) -> int:
    """Seconds to draw an image for each prompt in each of `settings` settings, code by code."""
    codes = prompts * settings * decoder.vocab.grid**2
    each = decoder_work(decoder.model, 1, Vocab(decoder.vocab).size)
    return math.ceil(3 * _COMPILE + codes * each.flops / each.tokens / 3 / (rate * _SHARE / 5))
