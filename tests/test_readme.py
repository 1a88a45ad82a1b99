"""What the README shows works: its Python runs, its commands and links exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from experiments.claims.claim import Result
from experiments.claims.claims_page import verdict
from launch.cli import parse_experiment
from launch.report import RESULTS, ROWS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_snippets_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert SNIPPETS
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command):
    words = shlex.split(command)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"there is no {words[2]}"
        if words[2] in ("launch.train", "launch.prepare") and words[3] != "show":
            assert parse_experiment(words[3:], "").name == words[3]
    else:
        assert words[:2] == ["pip", "install"]


def test_links_and_files_exist():
    links = re.findall(r"\]\((?!https:)([^)#]+)\)", README)
    files = re.findall(r"`((?:cm3jax|launch|experiments)/[\w/.]+\.\w+)`", README)
    assert links
    assert files
    for path in (*links, *files):
        assert (ROOT / path).exists(), f"README names {path}, which is not there"


def test_its_table_of_claims_is_the_page_s():
    said = {}
    for row in ROWS:
        if (RESULTS / f"{row.name}.json").exists():
            result = Result.load(RESULTS / f"{row.name}.json")
            said[row.title] = (row.headline(result.measured.scores), verdict(row, result))
    table = README.partition("| claim | here | reproduced |\n|---|---|---|\n")[2].partition("\n\n")[
        0
    ]
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()]
    assert {title: tuple(rest) for title, *rest in cells} == said
