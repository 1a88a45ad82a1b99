"""On a fresh machine every command says which others come first."""

import re
import shlex

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.presets import load_experiment
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from launch import evaluate, generate, index, prepare, serve, submit, train
from launch.cli import parse_experiment
from launch.parts import naming_commands, require_made
from tests.test_readme import ROOT

CHAIN = (
    *("--tokenizers.text", "runs/miniature/text", "--tokenizers.image", "runs/miniature/vqgan"),
    *("--retrieval.encoder", "runs/mine/clip"),
)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A checkout in which nothing was made yet, as the folder to work in."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("run", "argv", "said"),
    [
        (prepare.run, ("quickstart",), "are not there; make them with bash launch/quickstart.sh,"),
        (index.run, ("query", "quickstart", "a"), "clip is not there; make it with bash launch/qu"),
        (index.run, ("build", "quickstart"), "make them with bash launch/quickstart.sh, or"),
        (
            prepare.run,
            ("miniature/decoder", *CHAIN),
            "runs/miniature/text, runs/miniature/vqgan, runs/mine/clip are not there; make them "
            "with python -m launch.train miniature/text, then python -m launch.train "
            "miniature/vqgan, then python -m launch.train miniature/clip --tokenizers.text "
            "runs/miniature/text --workdir runs/mine/clip, or give another --tokenizers.text, "
            "--tokenizers.image, --retrieval.encoder.",
        ),
        (prepare.run, ("miniature/sft", *CHAIN[:2]), "it with python -m launch.train miniature/te"),
        (train.run, ("miniature/clip", *CHAIN[:2]), "it with python -m launch.train miniature/te"),
    ],
)
def test_what_comes_first_is_named_in_order(run, argv, said):
    with pytest.raises(UserError) as refused:
        run([*argv])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("run", "argv", "said"),
    [
        (train.run, ("quickstart",), "make it with bash launch/quickstart.sh."),
        (prepare.run, ("show", "quickstart"), "make it with bash launch/quickstart.sh."),
        (
            index.run,
            ("audit", "miniature/decoder"),
            "python -m launch.prepare miniature/decoder.",
        ),
    ],
)
def test_data_that_was_not_prepared_is_named_with_its_command(run, argv, said):
    with pytest.raises(UserError, match="missing") as refused:
        run([*argv])
    assert said in str(refused.value)


def printed(run, argv) -> list[str]:
    """The words after `python -m` of the command in the sentence that refuses `argv`, as a shell
    reads them."""
    with pytest.raises(UserError) as refused:
        run([*argv])
    command = str(refused.value).partition("python -m ")[2].removesuffix(".")
    return shlex.split(command.partition(", ")[0])


GIVEN = ("--data.source", "my photos; it's", "--data.licences", "CC0-1.0", "CC-BY-4.0")


@pytest.mark.parametrize(
    ("run", "argv", "options"),
    [
        (train.run, ("sft_7b",), ()),
        (train.run, ("sft_760m", "--data.records", "40"), ("--data.records", "40")),
        (train.run, ("miniature/sft", "--train.steps", "3", "--workdir", "a"), ()),
        (train.run, ("miniature/decoder", *GIVEN, "--mesh.data", "1"), GIVEN),
        (train.run, ("miniature/rivals/dalle", "--seed", "3"), ("--seed", "3")),
        (prepare.run, ("show", "miniature/masking/spans", *GIVEN), GIVEN),
        (index.run, ("verify", "emoji/decoder", *CHAIN), CHAIN),
        (
            train.run,
            ("folder/decoder", "--data.mixture", "my data:pair", "1"),
            ("--data.corpus", "my data/corpus", "--data.bank", "my data/bank"),
        ),
        (
            index.run,
            ("verify", "miniature/decoder", "--data.bank", "b"),
            ("--data.bank", "b"),
        ),
        (index.run, ("verify", "quickstart", "--data.bank", "b"), ("--data.bank", "b")),
    ],
)
def test_the_command_is_printed_as_it_is_to_be_given(run, argv, options):
    """With what decides the data, quoted: what it makes is what was missing."""
    module, name, *words = printed(run, argv)
    asked = parse_experiment([name, *words], "")
    assert module == "launch.prepare"
    assert name in argv
    wanted = parse_experiment([name, *options], "")
    assert (asked.data, asked.tokenizers, asked.seed) == (
        *(wanted.data, wanted.tokenizers, wanted.seed),
    )


@pytest.mark.parametrize(
    ("run", "words"),
    [(train.run, ()), (submit.run, ()), (prepare.run, ("show",))],
    ids=("train", "submit", "show"),
)
def test_a_corpus_that_a_mixture_would_hide_is_refused(run, words):
    argv = [*words, "miniature/decoder", "--data.corpus", "my/corpus"]
    with pytest.raises(UserError, match=r"would not read --data\.corpus my/corpus; give --data\.m"):
        run(argv)
    with pytest.raises(UserError, match=r"^(the corpus )?my/corpus/train.* is (missing or )?not "):
        run([*argv, "--data.mixture", "my", "1"])


@pytest.mark.parametrize(
    ("name", "corpus", "instead"),
    [
        ("miniature/decoder", "gs://mine/a b/corpus/", "give --data.mixture 'gs://mine/a b' 1 for"),
        ("miniature/decoder", "corpus", "give --data.mixture . 1 for"),
        ("miniature/sft", "my/corpus", "leave it out"),
    ],
)
def test_what_is_to_be_given_for_a_hidden_corpus(name, corpus, instead):
    with pytest.raises(UserError, match=f"; {re.escape(instead)}"):
        train.run([name, "--data.corpus", corpus])


@pytest.mark.parametrize(
    ("said", "home"),
    [
        ("the memory bank is missing: b c/bank/manifest.json does not exist", "b c"),
        ("the neighbours of a/corpus/train point into another bank than a/bank", "a"),
        ("something else is wrong", "a"),
    ],
)
def test_the_directory_of_a_mixture_is_named_that_the_sentence_is_about(said, home):
    words = ["miniature/decoder", "--data.mixture", "a", "1", "b c:pair", "1"]
    experiment = parse_experiment(words, "")

    def refuse(_):
        with naming_commands(experiment, True):
            raise UserError(f"{said}; run python -m launch.prepare EXPERIMENT.")

    assert printed(refuse, ()) == [
        *("launch.prepare", "miniature/decoder"),
        *("--data.corpus", f"{home}/corpus", "--data.bank", f"{home}/bank"),
    ]


SHIPPED = "experiments/miniature/weights/decoder"


@pytest.mark.parametrize(
    ("run", "argv"),
    [
        (generate.command, ("text", "a red circle", "--run", SHIPPED, "--retrieve", "2")),
        (evaluate.run, ("heldout", "--run", SHIPPED)),
        (evaluate.run, ("emblems", "--run", SHIPPED)),
    ],
)
def test_the_bank_of_the_shipped_weights_is_made_by_the_quickstart(run, argv):
    with pytest.raises(UserError) as refused:
        run([*argv])
    assert str(refused.value) == (
        "the memory bank is missing: data/shipped/bank/manifest.json does not exist; make it with "
        "bash launch/quickstart.sh."
    )


@pytest.mark.parametrize(
    ("run", "argv", "options"),
    [
        (evaluate.run, ("heldout", "--run", SHIPPED, "--bank", "b c"), ("--data.bank", "b c")),
        (
            generate.command,
            ("text", "a", "--run", SHIPPED, "--retrieve", "2", "--bank", "b"),
            ("--data.bank", "b"),
        ),
        (serve.command, (SHIPPED, "--bank", "b"), ("--data.bank", "b")),
        (evaluate.run, ("perplexity", "--run", SHIPPED), ()),
        (
            evaluate.run,
            ("perplexity", "--run", SHIPPED, "--corpus", "d/c"),
            ("--data.corpus", "d/c", "--data.bank", "d/bank"),
        ),
    ],
)
def test_what_a_trained_run_reads_is_made_by_its_experiment(run, argv, options):
    module, name, *words = printed(run, argv)
    assert (module, name) == ("launch.prepare", "miniature/decoder")
    made, wanted = (parse_experiment([name, *all_], "").data for all_ in (words, options))
    assert (made.corpus, made.bank) == (wanted.corpus, wanted.bank)


@pytest.mark.parametrize("name", ["cm3leon_7b", "parti", "dalle", "chameleon_7b", "cm3leon_350m"])
def test_what_an_experiment_leaves_open_is_named_step_by_step(name, tmp_path):
    """From nothing to the command that prepares its data."""
    module, again, *words = printed(train.run, (name,))
    assert (module, again) == ("launch.prepare", name)
    with pytest.raises(UserError) as refused:
        prepare.run([again, *words])
    size = 512 if name == "chameleon_7b" else 256
    assert str(refused.value) == (
        f"{name} names no tokenizers.text, no tokenizers.image, no retrieval.encoder; make them "
        f"with python -m launch.train text_tokenizer, then python -m launch.train vqgan_{size}, "
        "then python -m launch.convert clip openai/clip-vit-base-patch32 --out runs/clip, and give "
        "--tokenizers.text, --tokenizers.image, --retrieval.encoder."
    )


def test_a_damaged_bank_is_made_again_by_what_the_sentence_says(tmp_path):
    bank = Bank.build(
        tmp_path / "b",
        [BankDocument("k", np.array([9], np.int32), "t", True, False, "s", "l")],
        np.eye(4, dtype=np.float32)[:1],
        "e",
        "v",
    )
    (bank.path / "columns.npy").write_bytes(b"")
    words = printed(index.run, ("verify", "miniature/decoder", "--data.bank", "b"))
    assert words == ["launch.index", "build", "miniature/decoder", "--data.bank", "b"]


def test_what_is_there_or_in_a_bucket_passes(tmp_path):
    require_made(load_experiment("miniature/decoder"))  # the shipped ones
    require_made(load_experiment("vqgan_256"))
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for part in ("text", "vqgan", "clip"):
        (tmp_path / "runs" / "quickstart" / part).mkdir()
    require_made(load_experiment("quickstart"))
    (tmp_path / "experiments").unlink()
    with pytest.raises(UserError, match="comes with a checkout; run the command at its root"):
        require_made(load_experiment("miniature/decoder"))
