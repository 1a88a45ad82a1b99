"""A curriculum: what it takes, what it refuses, what it says."""

import dataclasses
import sys

import pytest

from cm3jax.config import ONE_STAGE, CurriculumConfig, DataConfig, Experiment
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import from_dict, to_dict
from cm3jax.presets import load_experiment
from launch.cli import parse_experiment
from launch.jobs import overrides
from tests.tiny import experiment

STAGES = ("--curriculum.starts", "0", "10", "--curriculum.documents", "1", "2")
TWO = CurriculumConfig(starts=(0, 10), documents=(1, 2), wrong_documents=(0.0, 0.35))
MIXED = DataConfig(mixture=(("data/a", 1.0), ("data/b", 2.0)))


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def parse(*argv: str) -> Experiment:
    return parse_experiment(["quickstart", *argv], "It trains.")


def test_a_command_line_gives_every_column():
    words = (
        *STAGES,
        *("--data.mixture", "data/a", "1", "data/b", "2"),
        *("--curriculum.mixture", "1", "0", "2", "3"),
        *("--curriculum.queries", "text", "both"),
        *("--curriculum.rate", "1", "0.5"),
        *("--curriculum.no-documents", "0", "0.1"),
        *("--curriculum.mean-masks", "0", "1.5"),
        *("--curriculum.wrong-documents", "0", "0.35"),
        *("--curriculum.vary-documents", "False", "True"),
    )
    found = parse(*words)
    assert found.curriculum == CurriculumConfig(
        starts=(0, 10),
        rate=(1.0, 0.5),
        mixture=(1.0, 0.0, 2.0, 3.0),
        documents=(1, 2),
        queries=("text", "both"),
        mean_masks=(0.0, 1.5),
        no_documents=(0.0, 0.1),
        wrong_documents=(0.0, 0.35),
        vary_documents=(False, True),
    )
    assert parse(*overrides(found, parse())) == found
    assert from_dict(to_dict(found)) == found
    assert parse(*STAGES[:3], *STAGES[3:]).curriculum.documents == (1, 2)


def test_help_explains_the_columns(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "--curriculum.starts [INT ...]" in said
    assert "Finished steps at which each stage begins" in said


def test_a_stage_replaces_what_its_columns_name():
    assert TWO.retrieval_of(0) == {"documents": 1}
    assert TWO.cm3_of(1) == {"wrong_documents": 0.35}
    assert TWO.changes_rows
    assert not dataclasses.replace(ONE_STAGE, starts=(0, 5), rate=(1.0, 0.1)).changes_rows
    assert (TWO.last_rows, ONE_STAGE.last_rows) == (10, 0)
    three = CurriculumConfig(starts=(0, 5, 9), mixture=(1.0, 0.0, 0.0, 1.0, 2.0, 1.0))
    assert [three.weights_of(n) for n in range(3)] == [(1.0, 0.0), (0.0, 1.0), (2.0, 1.0)]
    assert three.changes_rows
    assert ONE_STAGE.weights_of(0) == ()
    assert TWO.describe(1) == "stage 2 of 2, from step 10: documents 2, wrong_documents 0.35"
    assert three.mean_weights(15) == pytest.approx((9 / 15, 6 / 15))
    assert three.mean_weights(5) == (1.0, 0.0), "two stages that never begin"
    assert ONE_STAGE.mean_weights(15) == TWO.mean_weights(15) == ()
    assert three.describe(2) == "stage 3 of 3, from step 9: mixture 2.0 1.0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (STAGES[3:], r"curriculum\.documents=1 2 has 2 values for the 0 stages"),
        (("--curriculum.starts", "5", "10"), r"curriculum\.starts=5 10 must begin with 0 and rise"),
        (("--curriculum.starts", "0", "9", "9"), r"starts=0 9 9 must begin with 0 and rise"),
        ((*STAGES, "--curriculum.rate", "1"), r"curriculum\.rate=1\.0 has 1 values for the 2"),
        ((*STAGES, "--curriculum.rate", "1", "0"), r"curriculum\.rate must be positive"),
        ((*STAGES, "--curriculum.rate", "1", "nan"), r"curriculum\.rate must be positive"),
        (
            (*STAGES, "--curriculum.wrong-documents", "0", "2"),
            r"cm3\.wrong_documents=2\.0 is a probability",
        ),
        (
            ("--curriculum.starts", "0", "10", "--curriculum.documents", "1", "-1"),
            r"retrieval\.documents=-1 must be at least 0",
        ),
        (
            (*STAGES, "--curriculum.queries", "text", "sound"),
            r"curriculum\.queries",
        ),
        (
            (*STAGES, "--curriculum.mixture", "1", "1"),
            r"has 2 weights for 2 stages of 0 corpora in data\.mixture",
        ),
        (("--curriculum.mixture", "1"), r"curriculum\.mixture needs curriculum\.starts"),
        ((*STAGES, "--data.online"), r"take only curriculum\.starts and curriculum\.rate"),
    ],
)
def test_mistakes_raise_user_error(words, said):
    with pytest.raises(UserError, match=said) as raised:
        parse(*words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("weights", "resample", "said"),
    [
        ((1.0, 1.0, -1.0, 1.0), None, "must not be negative"),
        ((1.0, float("nan"), 1.0, 1.0), None, "must not be negative"),
        ((1.0, 1.0, 0.0, 0.0), None, "every corpus of a stage the weight 0"),
        ((1.0, 1.0, 0.0, 1.0), (0.3, 3.0), r"leave data\.resample out"),
    ],
)
def test_every_stage_reads_a_corpus(weights, resample, said):
    data = dataclasses.replace(MIXED, resample=resample)
    with pytest.raises(UserError, match=said):
        experiment("", data=data, curriculum=CurriculumConfig(starts=(0, 5), mixture=weights))


def test_only_a_decoder_changes_its_rows():
    vqgan = experiment("", learner="vqgan", curriculum=CurriculumConfig((0, 5), (1.0, 0.1)))
    assert vqgan.curriculum.rate == (1.0, 0.1)
    with pytest.raises(UserError, match="other trainings take only"):
        experiment("", learner="vqgan", curriculum=TWO)


@pytest.mark.parametrize(
    ("words", "column"),
    [
        (("--data.mixture", "mine", "1"), "mixture"),
        (("--retrieval.documents=0",), "documents"),
        (("--retrieval.queries", "text"), "queries"),
        (("--cm3.no_documents", "1"), "no_documents"),
        (("--cm3.wrong-documents", "0"), "wrong_documents"),
        (("--cm3.no-vary-documents",), "vary_documents"),
    ],
)
def test_an_option_holds_in_all_stages(words, column):
    """What is said on the command line is not overruled by a stage without a word."""
    usual = load_experiment("miniature/decoder")
    found = parse_experiment(["miniature/decoder", *words], "It trains.")
    assert getattr(usual.curriculum, column)
    assert found.curriculum == dataclasses.replace(usual.curriculum, **{column: ()})
    kept = (f"--curriculum.{column}", *map(str, getattr(usual.curriculum, column)))
    if column != "mixture":  # which must have a weight for each corpus
        both = parse_experiment(["miniature/decoder", *words, *kept], "It trains.")
        assert both.curriculum == usual.curriculum
