"""Experiments that train in stages: each goes through all of its stages, scaled down."""

import dataclasses
import re
from pathlib import Path

import pytest

from cm3jax.config import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig
from cm3jax.data.corpus import CorpusWriter
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.presets import experiment_names, load_experiment
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from experiments.miniature import sft
from launch.cli import parse_experiment
from tests import tiny
from tests.data.corpora import experiment, facts, shard, write_bank

NAMES = [name for name in experiment_names() if load_experiment(name).curriculum.starts]


def home(folder: Path, kind: str) -> str:
    """A prepared directory of 60 training records and 12 of validation, of a kind."""
    bank = write_bank(folder)
    for split, records in {"train": 60, "validation": 12}.items():
        writer = CorpusWriter(f"{folder}/corpus/{split}", "this")
        made = shard(range(records), len(bank))
        documents = [dataclasses.replace(document, kind=kind) for document in made.documents]
        writer.write(0, dataclasses.replace(made, documents=documents))
        writer.finish(1, facts(bank))
    return str(folder)


def scaled_down(name: str, folder: Path):
    """The experiment's objective and stages, two steps each, on other corpora and a tiny model."""
    preset = load_experiment(name)
    small = experiment(folder / "only")
    stages = len(preset.curriculum.starts)
    home(folder / "only", "")
    mixture = tuple(
        (home(folder / str(number), "scene"), weight)
        for number, (_, weight) in enumerate(preset.data.mixture)
    )
    return dataclasses.replace(
        small,
        name=name,
        workdir=f"{folder}/run",
        data=dataclasses.replace(small.data, mixture=mixture, resample=preset.data.resample),
        model=dataclasses.replace(tiny.experiment("").model, context=small.model.context),
        cm3=preset.cm3,
        retrieval=preset.retrieval,
        curriculum=dataclasses.replace(preset.curriculum, starts=tuple(range(0, 2 * stages, 2))),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=1, end_lr_ratio=1.0),
        train=TrainConfig(steps=2 * stages, log_every=1, validate_every=0),
        checkpoint=CheckpointConfig(every=100),
        mesh=MeshConfig(data=1),
    )


def test_the_shipped_decoders_are_trained_in_stages():
    assert {"emoji/decoder", "miniature/decoder", "miniature/sft"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_begins_before_the_training_ends(name):
    preset = load_experiment(name)
    assert preset.curriculum.starts[-1] < preset.train.steps
    last = len(preset.curriculum.starts) - 1
    for field, value in preset.curriculum.retrieval_of(last).items():
        assert getattr(preset.retrieval, field) == value, "generation shows what the end showed"
    for field, value in preset.curriculum.cm3_of(last).items():
        assert getattr(preset.cm3, field) == value


@pytest.mark.parametrize("name", ["emoji/decoder", "miniature/decoder"])
def test_names_bind_documents(name):
    """At the end a model sees wrong documents among them, in any order, found by both queries."""
    preset = load_experiment(name)
    assert preset.cm3.shuffle_documents
    assert preset.cm3.wrong_documents >= 0.35
    assert preset.retrieval.queries == "both"
    assert preset.retrieval.documents == 2


def test_the_row_of_one_task_is_drawn_as_the_header_says():
    (options,) = re.findall(r"`(--data\.tasks .*?)`", sft.__doc__)
    one = parse_experiment(["miniature/sft", *options.split()], "It shows a row.")
    assert one.data.mixture == (("data/miniature_sft/vqa", 1.0),)
    assert one.curriculum.starts == sft.get_config().curriculum.starts


@pytest.mark.slow  # `data/test_stages.py` trains through stages
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains_through_all_stages(name, tmp_path):
    config = scaled_down(name, tmp_path)
    state = train(DecoderLearner.from_corpus(config))
    lines = read_metrics(config.workdir)
    assert int(state.step) == len(lines) == 2 * len(config.curriculum.starts)
    factors = config.curriculum.rate or (1.0,) * len(config.curriculum.starts)
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([1e-2 * factor for factor in factors for _ in range(2)])
    assert len({line["batch_fingerprint"] for line in lines}) == len(lines)
    page = Path(config.workdir, "report.html").read_text()
    assert f"stage {len(config.curriculum.starts)}<" in page
