"""Every experiment builds, resolves to its golden text, and has the paper's size."""

import dataclasses
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cm3jax.model.decoder import Decoder
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.presets import experiment_names, load_experiment
from cm3jax.sequence.vocab import Vocab
from cm3jax.tokenizers.vqgan_model import VQGAN

GOLDEN = Path(__file__).parent / "golden"
NAMES = experiment_names()


def resolved(config: object, prefix: str = "") -> list[str]:
    """One `field = value` per line."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines += resolved(value, f"{prefix}{field.name}.")
        else:
            lines.append(f"{prefix}{field.name} = {value!r}")
    return sorted(lines)


@pytest.mark.parametrize("name", NAMES)
def test_experiment_is_as_reviewed(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    text = "\n".join(resolved(experiment)) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{name} is new; run with UPDATE_GOLDEN=1 and review {path.name}"
    assert text == path.read_text(), "if this is meant, run with UPDATE_GOLDEN=1 and review it"


def test_the_guide_says_how_golden_texts_are_updated():
    guide = (GOLDEN.parents[1] / "CONTRIBUTING.md").read_text()
    assert "UPDATE_GOLDEN=1 pytest tests/test_experiments.py\n" in guide


def test_every_golden_text_has_its_experiment():
    texts = (path.relative_to(GOLDEN).with_suffix("") for path in GOLDEN.rglob("*.txt"))
    assert sorted(text.as_posix() for text in texts) == NAMES


def count(module: nn.Module, *inputs: jax.Array) -> int:
    """Parameters of a module, by shape alone."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


ROW = jnp.zeros((1, 8), jnp.int32)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("cm3leon_350m", 0.373),
        ("cm3leon_760m", 0.786),
        ("cm3leon_7b", 6.73),
        ("ra_cm3", 2.7),
        ("cm3", 2.7),
        ("dalle", 12.36),  # "12 billion" and a larger vocabulary
        ("chameleon_7b", 7.014),
    ],
)
def test_sizes_of_the_papers(name, billions):
    experiment = load_experiment(name)
    size = Vocab(experiment.vocab).size
    parameters = count(Decoder(experiment.model, size), ROW, ROW, ROW)
    assert parameters / 1e9 == pytest.approx(billions, rel=0.002)
    assert parameters == experiment.model.parameters(size)


def test_size_of_chameleon_34b():
    model = dataclasses.replace(
        load_experiment("chameleon_7b").model,
        layers=48,
        width=8192,
        heads=64,
        kv_heads=8,
        ffn=22016,
        swin_norm=True,
        dropout=0.0,
    )
    assert model.parameters(65536) / 1e9 == pytest.approx(34.29, rel=0.001)
    assert count(Decoder(model, 65536), ROW, ROW, ROW) == model.parameters(65536)


def test_sizes_of_the_image_tokenizers():
    """Chameleon's is counted from the shapes of its checkpoint, whose codebook is a parameter."""
    sizes = {}
    for name in ("vqgan_256", "vqgan_512"):
        config = load_experiment(name).vqgan
        pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
        shapes = jax.eval_shape(VQGAN(config).init, jax.random.key(0), pixels)
        entries = shapes["codebook"]["quantiser"]["entries"]
        leaves = jax.tree.leaves((shapes["params"], entries))
        sizes[name] = sum(leaf.size for leaf in leaves)
        assert config.grid == 32
    assert sizes["vqgan_512"] / 1e6 == pytest.approx(68.7, abs=0.05)
    assert sizes["vqgan_256"] < sizes["vqgan_512"]


def test_size_of_parti():
    experiment = load_experiment("parti")
    vocab, parti = Vocab(experiment.vocab), experiment.parti
    sizes = (parti.encoder_layers, vocab.size, parti.text_tokens, vocab.image_tokens)
    model = EncoderDecoder(experiment.model, *sizes)
    parameters = count(model, ROW, ROW == 0, ROW)
    # Per layer d * d for each of 4 projections of an attention, of which the decoder has two, and
    # 8 for the feed-forward layer; then the embedding and both tables of positions.
    assert parameters == 4096 * (4096 * (16 * 12 + 64 * 16) + 65536 + 128 + 1024)
    assert parameters / 1e9 == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("miniature", "quickstart"))])
def test_the_miniature_shares_one_vocabulary(name):
    experiment = load_experiment(name)
    assert experiment.vocab == load_experiment("miniature/decoder").vocab
    assert experiment.clip.text_vocab >= experiment.vocab.text_pieces
