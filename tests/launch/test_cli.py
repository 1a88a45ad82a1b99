"""Command lines in, experiments out; each mistake is one sentence and exit code 2."""

import dataclasses
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from cm3jax import presets
from cm3jax.config import VQGANConfig
from cm3jax.errors import UserError
from launch import cli, env

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "launch").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def parse(*argv):
    return cli.parse_experiment(argv, "Train an experiment.")


def test_options_override_fields():
    experiment = parse(
        "quickstart", "--train.steps", "40", "--optim.peak_lr=3e-4", "--mesh.data", "-1", "--seed=7"
    )
    assert (experiment.train.steps, experiment.optim.peak_lr) == (40, 3e-4)
    assert (experiment.mesh.data, experiment.seed) == (-1, 7)
    untouched = ("name", "vocab", "model", "data", "cm3", "retrieval", "decode", "checkpoint")
    default = presets.load_experiment("quickstart")
    assert all(getattr(experiment, field) == getattr(default, field) for field in untouched)


def test_options_of_every_kind():
    experiment = parse(
        "quickstart",
        *("--vqgan.multipliers", "1"),
        *("--decode.temperature-range", "0.5", "1"),
        *("--tokenizers.algorithm", "unigram"),
        *("--data.mixture", "data/a", "3", "data/b", "0.5"),
        "--cm3.mask-retrieved",
    )
    assert (experiment.vqgan.multipliers, experiment.cm3.mask_retrieved) == ((1,), True)
    assert experiment.decode.temperature_range == (0.5, 1.0)
    assert experiment.tokenizers.algorithm == "unigram"
    assert experiment.data.mixture == (("data/a", 3.0), ("data/b", 0.5))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the first argument is the experiment's name; give one of "),
        (["--seed", "1"], "the first argument is the experiment's name"),
        (["quickstrat"], "there is no experiment 'quickstrat' (did you mean quickstart?); "),
        (["miniature/base"], "there is no experiment 'miniature/base'"),
        (
            ["quickstart", "--optim.peak-rl", "1"],
            "there is no option --optim.peak-rl (did you mean --optim.peak-lr?)",
        ),
        (["quickstart", "--train.steps", "many"], "--train.steps takes int, not 'many'."),
        (["quickstart", "--optim.peak-lr=fast"], "--optim.peak-lr takes float, not 'fast'."),
        (
            ["quickstart", "--decode.temperature-range", "1", "--seed", "3"],
            "--decode.temperature-range takes tuple[float, float] | None, not '1'.",
        ),
        (["quickstart", "--train.steps"], "Missing value for argument '--train.steps'"),
        (
            ["quickstart", "--learner", "painter"],
            "invalid choice 'painter' for argument '--learner'",
        ),
        (["quickstart", "40"], "40 belongs to no option; "),
        (["quickstart", "--train.steps", "0"], "train.steps=0 must be at least 1."),
        (["quickstart", "--vqgan.patch", "4"], "quickstart: vqgan gives 8x8 of 1024 codes, vocab"),
    ],
)
def test_a_mistake_raises_user_error(argv, said):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    sentence = str(caught.value)
    assert sentence.startswith(said)
    assert "\n" not in sentence
    assert not set(sentence) & set("╭│╰─")


def test_help_lists_the_experiments(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name}\n" in out for name in presets.experiment_names())


def test_help_of_an_experiment_explains_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        parse("quickstart", "--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "--optim.peak-lr FLOAT" in out
    assert "Learning rate after the warm-up." in out


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draw images."""

    prompt: tyro.conf.Positional[str]
    """What to draw."""
    samples: int = 1
    """Images per prompt."""


@dataclasses.dataclass(frozen=True)
class Tell:
    """Tell what an image shows."""

    picture: tyro.conf.Positional[str]
    """The image."""


def test_commands_with_their_own_options():
    assert cli.parse(Draw, ["a fox", "--samples", "3"], "") == Draw("a fox", 3)
    assert cli.parse(Draw | Tell, ["tell", "fox.png"], "") == Tell("fox.png")
    assert cli.parse(VQGANConfig, ["--channels", "64"], "").channels == 64
    with pytest.raises(UserError, match=r"no option --sampels \(did you mean --samples\?\)"):
        cli.parse(Draw | Tell, ["draw", "a fox", "--sampels", "3"], "")
    program = "python -m launch.draw"
    with pytest.raises(UserError, match=f"{program} needs STR .What to draw.\\.$"):
        cli.parse(Draw, [], "", program=program)
    with pytest.raises(UserError, match=r"needs STR .The image.\.$"):
        cli.parse(Draw | Tell, ["tell"], "")
    with pytest.raises(UserError, match=r"has no 'tel' .did you mean tell\?.; give one of draw, t"):
        cli.parse(Draw | Tell, ["tel", "fox.png"], "", program=program)
    with pytest.raises(
        UserError, match=f"{program} needs to know what to do; give one of draw, tell."
    ):
        cli.parse(Draw | Tell, [], "", program=program)


def exit_code(command, capsys):
    with pytest.raises(SystemExit) as end:
        env.main(command)
    return end.value.code, capsys.readouterr().err


def test_main_ends_with_a_sentence_and_no_traceback(capsys):
    def refuse(argv):
        raise UserError("the bank is missing: make it.")

    def interrupt(argv):
        raise KeyboardInterrupt

    assert exit_code(refuse, capsys) == (2, "error: the bank is missing: make it.\n")
    assert exit_code(interrupt, capsys) == (130, "")


def run(command: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help(command, monkeypatch, capsys):
    """In this process, which has imported most of it; the next tests start some of their own."""
    monkeypatch.setattr(env, "prepare", lambda: None)  # it is for processes of their own
    path = str(ROOT / "launch" / f"{command}.py")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    said = capsys.readouterr()
    assert not ended.value.code
    assert said.out.startswith(f"usage: python -m launch.{command}"), said.out
    assert re.search(rf"\nexamples:\n  python -m launch\.{command} ", said.out), said.out
    assert max(map(len, said.out.splitlines()[1:])) <= 100
    assert not re.search(r"^ *python .* {2}--", said.out, re.MULTILINE), "a line's end was lost"
    assert not said.err


def test_a_command_refuses_bad_input_with_exit_code_2():
    answer = run("train", "quickstart", "--train.step", "4")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        "error: there is no option --train.step (did you mean --train.steps?); --help lists all.\n"
    )
