"""Every experiment builds, resolves to its golden text, and has the paper's size."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cm3jax.config import Experiment
from cm3jax.model.decoder import Decoder
from cm3jax.vocab import Vocab
from launch.cli import experiment_names, load_experiment

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


def test_every_golden_text_has_its_experiment():
    texts = (path.relative_to(GOLDEN).with_suffix("") for path in GOLDEN.rglob("*.txt"))
    assert sorted(text.as_posix() for text in texts) == NAMES


def parameters(experiment: Experiment) -> int:
    """Parameters of the decoder, by shape alone."""
    model = Decoder(experiment.model, Vocab(experiment.vocab).size)
    row = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), row, row, row)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "billions"),
    [("cm3leon_350m", 0.373), ("cm3leon_760m", 0.786), ("cm3leon_7b", 6.73)],
)
def test_sizes_of_the_paper(name, billions):
    experiment = load_experiment(name)
    count = parameters(experiment)
    assert count / 1e9 == pytest.approx(billions, rel=0.002)
    assert count == experiment.model.parameters(Vocab(experiment.vocab).size)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("miniature", "quickstart"))])
def test_the_miniature_shares_one_vocabulary(name):
    experiment = load_experiment(name)
    assert experiment.vocab == load_experiment("miniature/decoder").vocab
    assert experiment.clip.text_vocab >= experiment.vocab.text_pieces
