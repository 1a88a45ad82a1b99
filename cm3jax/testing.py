"""Tiny real parts for tests, ours and users': config, tokenizers, documents, a whole chain of runs.

Everything is untrained and a function of nothing but its arguments: images are noise, texts are
nonsense, and all code paths are the real ones.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.config import (
    ClipConfig,
    CM3Config,
    DataConfig,
    DecodeConfig,
    DecoderConfig,
    Experiment,
    RetrievalConfig,
    TokenizersConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.learners import clip as clip_learner
from cm3jax.model.decoder import Decoder
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.clip_encoder import CLIP
from cm3jax.sequence.document import DocumentSegments, Image, Text, render
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import UInt8
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.training.exported_run import LoadedRun, write_run

CAPTIONS = (
    "a red fox above a small blue circle",
    "two green squares on the left, one yellow star",
    "the emblem of zorby on a white flag",
    "a large cat below the moon of pelux",
)


def experiment() -> Experiment:
    """Images of 16x16 pixels and 2x2 codes, a decoder of two layers with a context of 96."""
    return Experiment(
        name="tiny",
        vocab=VocabConfig(specials=16, image_codes=32, text_pieces=320, sentinels=6, grid=2),
        tokenizers=TokenizersConfig(text="text", image="vqgan"),
        vqgan=VQGANConfig(
            image_size=16,
            patch=8,
            channels=16,
            multipliers=(1,),
            blocks=1,
            attention=False,
            kernel=1,
            codes=32,
            code_width=8,
        ),
        clip=ClipConfig(
            image_size=16,
            patch=8,
            vision_width=16,
            vision_layers=1,
            vision_heads=2,
            text_width=16,
            text_layers=1,
            text_heads=2,
            text_context=32,
            text_vocab=320 + 2,
            width=16,
        ),
        model=DecoderConfig(
            layers=2, width=32, heads=4, head_width=8, ffn=64, context=96, dtype="float32"
        ),
        cm3=CM3Config(max_masks=6),
        retrieval=RetrievalConfig(encoder="clip", diversity_cut=1.0),
        data=DataConfig(bank="bank"),
        decode=DecodeConfig(max_text_tokens=32),
    )


@functools.cache
def text_tokenizer() -> TextTokenizer:
    """Trained on `CAPTIONS`."""
    return TextTokenizer.train(CAPTIONS, experiment().vocab.text_pieces)


def random_variables(init: Callable[..., Mapping[str, Any]], *inputs: Any) -> dict:
    """Variables of a module's shapes, all of them noise, as if `init(key, *inputs)` had run.

    Nothing is compiled, and nothing is zero, as some layers of a fresh model are: they would hide
    what they multiply.
    """
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), *inputs))
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0)
    noise = [jnp.asarray(0.3 * draw.normal(size=x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, noise)


@functools.cache
def _image_variables() -> dict:
    config = experiment().vqgan
    blank = jnp.zeros((1, config.image_size, config.image_size, 3))
    return random_variables(VQGAN(config).init, blank)


@functools.cache
def image_tokenizer() -> ImageTokenizer:
    """With random weights."""
    return ImageTokenizer(experiment().vqgan, _image_variables())


def vocab() -> Vocab:
    """The vocabulary of both tokenizers."""
    return Vocab(experiment().vocab, text_tokenizer().fingerprint, image_tokenizer().fingerprint)


def pictures(count: int, seed: int = 0) -> UInt8[np.ndarray, "B Y X 3"]:
    """Images of coloured noise, uint8."""
    size = experiment().vqgan.image_size
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, size, size, 3), np.uint8)


def documents(count: int, seed: int = 0) -> list[DocumentSegments]:
    """Pairs of a caption and an image."""
    rows = image_tokenizer().encode(pictures(count, seed)).tolist()
    texts = [tuple(text_tokenizer().encode(CAPTIONS[i % len(CAPTIONS)])) for i in range(count)]
    return [(Text(text), Image(tuple(row))) for text, row in zip(texts, rows, strict=True)]


def decoder_variables(model: Decoder) -> dict:
    """Random parameters for a decoder."""
    row = jnp.zeros((1, 4), jnp.int32)
    return random_variables(model.init, row, row, row)


def write_chain(directory: Path, bank_size: int = 12) -> Path:
    """Write untrained runs `text`, `vqgan`, `clip`, `decoder` and a `bank`; return the last run.

    The runs are side by side, as exported ones; `bank_size` pairs are in the bank.
    """
    base = dataclasses.replace(
        experiment(),
        data=DataConfig(bank=str(directory / "bank")),
    )
    text_tokenizer().save(directory / "text")
    prints = {"text": text_tokenizer().fingerprint}

    def write(name, learner, variables, fingerprints):
        run = dataclasses.replace(base, name=f"tiny/{name}", learner=learner)
        write_run(LoadedRun(run, variables, 0, fingerprints), directory / name)

    write("vqgan", "vqgan", _image_variables(), {})
    pieces, pixels = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 16, 16, 3))
    encoder = random_variables(CLIP(base.clip).init, pieces, pixels)
    write("clip", "clip", encoder, prints)
    text_tokenizer().save(directory / "clip")
    decoder = decoder_variables(Decoder(base.model, vocab().size))
    prints |= {"vocab": vocab().fingerprint, "image": image_tokenizer().fingerprint}
    write("decoder", "decoder", decoder, prints)
    _write_bank(directory, bank_size)
    return directory / "decoder"


def _write_bank(directory: Path, size: int) -> None:
    encoder = clip_learner.load(directory / "clip")
    texts = [CAPTIONS[i % len(CAPTIONS)] for i in range(size)]
    vectors = encoder.encode_documents(list(zip(texts, pictures(size, seed=1), strict=True)))
    members = (
        BankDocument(f"tiny-{i}", render(document, vocab()), text, True, True, "tiny", "CC0-1.0")
        for i, (document, text) in enumerate(zip(documents(size, seed=1), texts, strict=True))
    )
    Bank.build(directory / "bank", members, vectors, encoder.fingerprint, vocab().fingerprint)
