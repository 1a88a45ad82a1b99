"""The rows of a curriculum: each stage's own, and the same from any position."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from cm3jax.config import CheckpointConfig, CurriculumConfig, MeshConfig, OptimConfig, TrainConfig
from cm3jax.data.corpus import Corpus
from cm3jax.data.packing import Position
from cm3jax.data.pipeline import CorpusStream, combine_fingerprints
from cm3jax.data.stages import StagedStream
from cm3jax.errors import UserError
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.retrieval.bank import Bank
from cm3jax.train import train
from cm3jax.training.metrics import lives, read_metrics
from tests import tiny
from tests.data.corpora import corpus_stream, experiment, write_bank, write_corpus

START = Position()
COPY = CurriculumConfig(
    starts=(0, 7, 20),
    documents=(1, 2, 2),
    queries=("text", "both", "both"),
    no_documents=(0.0, 0.1, 0.1),
    wrong_documents=(0.0, 0.5, 0.5),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Corpora of training and of validation, and their experiment."""
    path = tmp_path_factory.mktemp("prepared")
    bank = write_bank(path)
    write_corpus(path, bank)
    write_corpus(path, bank, records=30, shards=1, split="validation")
    return experiment(path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Prepared directories of 300 and of 60 records."""
    path = tmp_path_factory.mktemp("mixture")
    for name, records in {"large": 300, "small": 60}.items():
        bank = write_bank(path / name)
        write_corpus(path / name, bank, records, shards=1)
    return experiment(path, mixture=((f"{path}/large", 3.0), (f"{path}/small", 1.0)))


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Five blocks an epoch instead of one, and fewer batches ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorpusStream, "tokens_at_once", 1 << 12)
        for module in ("packing", "cm3_rows"):
            patch.setattr(f"cm3jax.data.{module}.BLOCK", 64)
        yield


def staged(config, stages, *process):
    whole = corpus_stream(config, "train")
    return StagedStream(CorpusStream(config.data, config.seed, whole.corpora, *process), stages)


def take(stream, count, position=START):
    return list(itertools.islice(stream.batches(position), count))


def marks(batches):
    return [batch.fingerprint for batch in batches]


def alone(config, stages, number):
    """The stream of one stage as an experiment of its own."""
    config = dataclasses.replace(
        config,
        retrieval=dataclasses.replace(config.retrieval, **stages.retrieval_of(number)),
        cm3=dataclasses.replace(config.cm3, **stages.cm3_of(number)),
    )
    return corpus_stream(config, "train")


def test_rows_are_those_of_their_stage(prepared):
    batches = take(staged(prepared, COPY), 25)
    assert marks(batches[:7]) == marks(take(alone(prepared, COPY, 0), 7))
    at_border = batches[6].next
    (place,) = at_border.parts
    assert (at_border.row, place.row) == (7, 0), "a stage begins with a block"
    before = take(alone(prepared, COPY, 0), 7)[-1].next
    assert place == Position(before.epoch, before.block + 1)
    assert marks(batches[7:20]) == marks(take(alone(prepared, COPY, 1), 13, place))
    assert batches[19].next.parts[0].row > 0, "the third stage changes nothing of the second"
    assert marks(batches[7:]) == marks(take(alone(prepared, COPY, 1), 18, place))


def test_a_stage_shows_its_documents(prepared):
    plans = [staged(prepared, COPY)._at(number).corpora[0].plan(0, 0) for number in (0, 1)]
    counts = [(plan.documents >= 0).sum(1) for plan in plans]
    assert counts[0].max() == 1
    assert counts[1].max() == 2
    corpus = corpus_stream(prepared, "train").corpora[0].corpus
    for record, shown in zip(plans[0].records, plans[0].documents, strict=True):
        assert all(document in corpus.neighbours[record, :, 0] for document in shown[shown >= 0])


def test_validation_and_the_last_stage_are_as_the_experiment_says(prepared):
    config = dataclasses.replace(prepared, curriculum=COPY)
    learner = DecoderLearner.from_corpus(config)
    plain = DecoderLearner.from_corpus(prepared)
    assert marks(take(learner.stream("validation"), 3)) == marks(
        take(plain.stream("validation"), 3)
    )
    assert learner.stream("train").fingerprints == plain.stream("train").fingerprints
    first, second, third, shown = learner.stream("train").notes
    assert first.startswith("stage 1 of 3, from step 0: documents 1, queries text, no_documents 0")
    assert second.startswith("stage 2 of 3, from step 7: documents 2")
    assert third.endswith("wrong_documents 0.5.")
    assert shown.startswith("in stage 3, documents in front of the samples of ")


def test_no_stage_reads_the_documents_again(prepared, monkeypatch):
    """They are in memory once for all stages, and for what is said of the last one."""
    stream = staged(prepared, COPY)

    def again(*_):
        raise AssertionError("the documents are read again")

    monkeypatch.setattr(Corpus, "all_ids", again)
    monkeypatch.setattr(Bank, "documents", again)
    assert len(take(stream, 25)) == 25
    assert len(stream.notes) == 4


def test_any_position_goes_on_with_the_same_batches(prepared, mixture):
    weights = CurriculumConfig(
        starts=(0, 5, 11), mixture=(1.0, 0.0, 0.0, 1.0, 1.0, 1.0), documents=(1, 1, 2)
    )
    for config, stages in ((prepared, COPY), (mixture, weights)):
        straight = take(staged(config, stages), 24)
        for at in (0, 4, 5, 6, 10, 11, 19):
            saved = json.loads(json.dumps(dataclasses.asdict(straight[at].next)))
            rest = take(staged(config, stages), 3, Position.from_json(saved))
            assert marks(rest) == marks(straight[at + 1 : at + 4])
            assert [batch.next for batch in rest] == [
                batch.next for batch in straight[at + 1 : at + 4]
            ]


def test_a_corpus_of_weight_0_waits(mixture):
    stages = CurriculumConfig(starts=(0, 5, 9), mixture=(1.0, 0.0, 0.0, 1.0, 3.0, 1.0))
    batches = take(staged(mixture, stages), 12)
    first, second = batches[4].next.parts[0], batches[8].next.parts[0]
    assert [batch.next.parts[0].row for batch in batches] == [8 * n for n in range(1, 13)]
    assert first.parts[0] != START
    assert first.parts[1] == START
    assert second.parts[0] == first.parts[0], "no rule of its rows changed: the place stays"
    assert second.parts[1] != START
    assert batches[11].next.parts[0].parts[0] != second.parts[0]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_every_stage(mixture, processes):
    stages = CurriculumConfig(starts=(0, 3), mixture=(1.0, 1.0, 1.0, 3.0), documents=(1, 2))
    whole = take(staged(mixture, stages), 6)
    shares = [take(staged(mixture, stages, i, processes), 6) for i in range(processes)]
    for batch, *own in zip(whole, *shares, strict=True):
        assert {share.next for share in own} == {batch.next}
        assert combine_fingerprints(marks(own)) == combine_fingerprints(marks([batch]))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(s.data for s in own))
        jax.tree.map(np.testing.assert_array_equal, joined, batch.data)


# -------------------------------------------------------------------------------- training


def training(prepared, folder, steps, **fields):
    """An experiment that trains on the rows of `prepared`, saving every step."""
    model = dataclasses.replace(tiny.experiment("").model, context=prepared.model.context)
    return dataclasses.replace(
        prepared,
        workdir=str(folder),
        model=model,
        curriculum=CurriculumConfig(
            starts=(0, 2, 4),
            documents=(1, 2, 0),
            rate=(1.0, 0.5, 0.25),
            wrong_documents=(0.0, 0.5, 0.0),
        ),
        # The rate does not fall, so that it is the same whatever the number of steps.
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=1, end_lr_ratio=1.0),
        train=TrainConfig(steps=steps, log_every=1, validate_every=0),
        checkpoint=CheckpointConfig(every=1),
        mesh=MeshConfig(data=1),
        **fields,
    )


@pytest.fixture(scope="module")
def straight(prepared, tmp_path_factory):
    """A run of six steps through three stages, and its state."""
    config = training(prepared, tmp_path_factory.mktemp("straight") / "run", 6)
    return config, train(DecoderLearner.from_corpus(config))


@pytest.mark.parametrize("stop", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_that_stopped_inside_a_stage_or_at_its_border_is_the_same(
    prepared, straight, tmp_path, stop
):
    config = training(prepared, tmp_path / "run", stop)
    train(DecoderLearner.from_corpus(config))
    whole = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    state = train(DecoderLearner.from_corpus(whole))
    jax.tree.map(np.testing.assert_array_equal, state, straight[1])
    names = ("step", "loss", "learning_rate", "batch_fingerprint")
    ours, theirs = (
        [[line[name] for name in names] for line in read_metrics(folder.workdir)]
        for folder in (whole, straight[0])
    )
    assert ours == theirs


def test_the_rate_and_the_run_folder_show_the_stages(straight):
    config, _ = straight
    rates = [line["learning_rate"] for line in read_metrics(config.workdir)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3], rtol=1e-6)
    (life,) = lives(config.workdir)
    assert life["options"]["curriculum"]["starts"] == [0, 2, 4]
    with open(f"{config.workdir}/report.html") as file:
        page = file.read()
    assert "stage 2" in page
    assert "stage 3" in page


@pytest.mark.slow
def test_another_curriculum_is_another_run(prepared, straight, tmp_path, capsys):
    shutil.copytree(straight[0].workdir, tmp_path / "run")
    longer = training(prepared, tmp_path / "run", 8)
    other = dataclasses.replace(longer.curriculum, documents=(1, 2, 1))
    changed = dataclasses.replace(longer, curriculum=other)
    with pytest.raises(UserError, match=r"curriculum\.documents \(1, 2, 0\) → \(1, 2, 1\)"):
        train(DecoderLearner.from_corpus(changed))
    state = train(DecoderLearner.from_corpus(changed), resume_with_changes=True)
    assert int(state.step) == 8
    assert "its epoch begins again" in capsys.readouterr().out
    # And back to no curriculum at all, whose position is another one.
    plain = dataclasses.replace(
        changed, curriculum=CurriculumConfig(), train=dataclasses.replace(changed.train, steps=9)
    )
    assert int(train(DecoderLearner.from_corpus(plain), resume_with_changes=True).step) == 9
