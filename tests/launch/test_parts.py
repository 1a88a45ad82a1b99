"""On a fresh machine every command says which others come first."""

import pytest

from cm3jax.errors import UserError
from cm3jax.presets import load_experiment
from launch import index, prepare, train
from launch.parts import require_made
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
            "miniature/vqgan, then python -m launch.train EXPERIMENT --workdir runs/mine/clip, or "
            "give another --tokenizers.text, --tokenizers.image, --retrieval.encoder.",
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
        (train.run, ("quickstart",), "make it with python -m launch.prepare EXPERIMENT, the quick"),
        (prepare.run, ("show", "quickstart"), "make it with python -m launch.prepare EXPERIMENT"),
        (index.run, ("audit", "miniature/decoder"), "with python -m launch.prepare EXPERIMENT, or"),
    ],
)
def test_data_that_was_not_prepared_is_named_with_its_command(run, argv, said):
    with pytest.raises(UserError, match="missing") as refused:
        run([*argv])
    assert said in str(refused.value)


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
