"""What README and docs show works: their Python runs, their commands and links exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from experiments.claims.claim import Result
from experiments.claims.claims_page import verdict
from launch import (
    chain,
    evaluate_options,
    generate_options,
    jobs,
    plan,
    prepare,
    quickstart,
    serve,
)
from launch.bench import command as bench
from launch.cli import parse, parse_experiment, parse_experiment_and
from launch.report import RESULTS, ROWS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        *("docs/quickstart.md", "docs/training.md", "docs/data.md", "docs/generation.md"),
        *("docs/python.md", "docs/server.md"),
        *("docs/converting.md", "docs/tasks.md", "docs/evaluation.md", "docs/claims.md"),
        *("docs/pods.md", "docs/targets.md", "docs/benchmarks.md", "docs/glossary.md"),
        *("ARCHITECTURE.md", "CONTRIBUTING.md"),
    )
}
"""The manual, in the order in which it is read."""
README = PAGES["README.md"]
OPTIONS = {"launch.generate": generate_options.Options, "launch.serve": serve.Options}
"""Commands whose options are one class."""
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGES["docs/pods.md"], re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    return [
        line.split("#")[0].strip()
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def inline_commands(text: str) -> list[str]:
    """The whole commands in the running text, and the benches, which it names without Python."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"`python -m ([\w.]+\s[^`]+)`|`(launch\.bench\s[^`]+)`", plain)
    return [f"python -m {' '.join(each.split())}" for each in map("".join, found)]


COMMANDS = [line for name in PAGES if name.startswith("docs/") for line in commands(PAGES[name])]


def test_every_page_is_part_of_the_manual():
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= PAGES.keys()
    assert all(name in README for name in PAGES if name != "README.md")
    assert README.count("\n") <= 150


def test_readme_s_commands_are_the_docs():
    mine = [line for line in commands(README) if not line.startswith("pip install")]
    assert set(mine) <= set(COMMANDS)


@pytest.mark.slow  # a training step of each of docs/pods.md
def test_snippets_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert SNIPPETS
    for snippet in SNIPPETS:
        exec(compile(snippet, "docs/pods.md", "exec"), names)


@pytest.mark.slow  # test_display.py and test_options.py ask for what it shows
def test_the_page_on_python_runs_in_order(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES["docs/python.md"], re.MULTILINE | re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "circle.png").exists()
    assert names["model"].caption([names["sample"].image])[0][0].text
    calls = re.findall(r"^\| `model\.(\w+)\(", PAGES["docs/python.md"], re.MULTILINE)
    assert len(calls) == 11
    assert all(callable(getattr(names["model"], call)) for call in calls)


INLINE = [line for name in PAGES for line in inline_commands(PAGES[name])]


@pytest.mark.parametrize("command", dict.fromkeys([*commands(README), *COMMANDS, *INLINE]))
def test_command_exists(command):
    words = shlex.split(command)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"there is no {words[2]}"
        if words[2:4] == ["launch.prepare", "show"]:
            assert parse_experiment_and(prepare.ShowOptions, words[4:], "")[0].name == words[4]
        elif words[2] in ("launch.train", "launch.prepare"):
            assert parse_experiment(words[3:], "").name == words[3]
        elif words[2] == "launch.chain":
            assert parse(chain.Options, words[3:], "").source == words[3]
        elif words[2] == "launch.evaluate":
            parse(evaluate_options.Options, words[3:], "")
        elif words[2] == "launch.bench":
            assert bench.make_parser().parse_args(words[3:]).measure
        elif words[2] in ("launch.plan", "launch.submit"):
            options = plan.Options if words[2] == "launch.plan" else jobs.Options
            assert parse_experiment_and(options, words[3:], "")[0].name == words[3]
        elif words[2] in OPTIONS:
            parse(OPTIONS[words[2]], words[3:], "")
    else:
        assert words[:2] == ["pip", "install"]


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_exist(name):
    links = re.findall(r"\]\((?!https:)([^)#]+)\)", PAGES[name])
    files = re.findall(r"`((?:cm3jax|launch|experiments|tests)/[\w/.]+\.\w+)`", PAGES[name])
    for path in (*((ROOT / name).parent / link for link in links), *(ROOT / f for f in files)):
        assert path.exists(), f"{name} names {path}, which is not there"


def test_architecture_is_short_and_names_files_that_exist():
    page = PAGES["ARCHITECTURE.md"]
    assert page.count("\n") <= 110
    folders = (ROOT / "cm3jax", ROOT / "launch", ROOT / "tests")
    paths = [f"/{path.relative_to(ROOT)}" for folder in folders for path in folder.rglob("*.py")]
    named = re.findall(r"(?<![\w*/])[\w/]+\.py\b", page)
    assert named
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_its_table_of_claims_is_the_page_s():
    said = {}
    for row in ROWS:
        if (RESULTS / f"{row.name}.json").exists():
            result = Result.load(RESULTS / f"{row.name}.json")
            said[row.title] = (row.headline(result.measured.scores), verdict(row, result))
    table = (
        PAGES["docs/claims.md"]
        .partition("| claim | here | reproduced |\n|---|---|---|\n")[2]
        .partition("\n\n")[0]
    )
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()]
    assert {title: tuple(rest) for title, *rest in cells} == said
    names = [f"`{row.name}`" for row in ROWS]
    told = " ".join(PAGES["docs/claims.md"].split())
    assert f"{', '.join(names[:-1])} or {names[-1]}." in told


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/evaluation.md"])
def test_they_say_how_short_the_quickstart_s_training_is(name):
    steps = quickstart.located(quickstart.Options())["decoder"].train.steps
    assert f"{steps} steps" in " ".join(PAGES[name].split())
