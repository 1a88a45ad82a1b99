"""`--help`: filled lines, no empty defaults, and the examples of the command in question."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from launch import cli
from launch.help_text import examples


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draw images."""

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT ...]")
    ] = ()
    """What to draw."""
    run: str = ""
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME; by
    default the weights of this checkout."""
    floor: float | None = None
    """Leave out documents that score below this."""
    documents: tuple[int, ...] = (0, 1, 2)
    """Numbers of retrieved documents.

    Each number is drawn by itself."""


@dataclasses.dataclass(frozen=True)
class Guide:
    """Draw images."""

    guidance: str = ""
    """Either `cfg:3` or `cdk:8` or `half:8,0.5`, for half."""


@dataclasses.dataclass(frozen=True)
class Tell:
    """Tell what an image shows."""

    image: str
    """The image."""


def help_of(options, capsys, *argv):
    with pytest.raises(SystemExit) as end:
        cli.parse(options, [*argv, "--help"], "Draw images.", program="python -m launch.draw")
    assert not end.value.code
    return capsys.readouterr().out


def test_options_without_defaults_have_filled_lines_and_plain_types(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = help_of(Draw, capsys)
    lines = [line.strip("│ ") for line in out.splitlines()]
    assert lines[0].startswith("usage: python -m launch.draw [-h] [PROMPT ...] [--run STR] ")
    assert "[PROMPT ...]   What to draw." in lines
    run = next(line for line in lines if line.startswith("--run STR  "))
    assert run.endswith("one of its checkpoints,")
    assert (
        lines[lines.index(run) + 1]
        == "exported weights, or hf:OWNER/NAME; by default the weights of"
    )
    assert "--floor FLOAT" in out
    assert "{None}" not in out
    texts = lines.index("--documents [INT ...]")
    assert lines[texts + 1 : texts + 4] == [
        "Numbers of retrieved documents.",
        "",
        "Each number is drawn by itself. (default: 0 1 2)",
    ]
    assert out.count("(default:") == 1
    assert {len(line) for line in out.splitlines() if line.startswith(("│", "╭", "╰"))} == {80}


def test_descriptions_are_filled_and_code_with_a_comma_stays_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        cli.parse(Guide, ["--help"], "Draw images with guidance, " * 4 + "as it is known.")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[1:])) == 60
    assert "known.\n\n╭" in out
    assert "`half:8,0.5`" in " ".join(line.strip("│ ") for line in out.splitlines())


def test_subcommands_keep_their_bullets(capsys):
    out = help_of(Draw | Tell, capsys)
    assert "│   • draw    Draw images. " in out
    assert "│   • tell    Tell what an image shows. " in out


DOCSTRING = """Draw.

    python -m launch.draw circle
    python -m launch.draw scene \\
        --large

More words.
"""


def test_examples_are_those_of_the_command_or_all():
    circle = "  python -m launch.draw circle\n"
    scene = "  python -m launch.draw scene \\\n      --large\n"
    assert examples(DOCSTRING, "python -m launch.draw scene") == "examples:\n" + scene
    assert examples(DOCSTRING, "python -m launch.draw") == "examples:\n" + circle + scene
    assert examples(DOCSTRING, "python -m launch.draw square") == "examples:\n" + circle + scene
    assert examples("Draw.", "python -m launch.draw") == ""
    assert examples(None, "python -m launch.draw") == ""
