import sys

import pytest

from cm3jax.errors import UserError
from launch import prepare


def test_what_is_missing_is_named(tmp_path):
    nowhere = ["--tokenizers.text", str(tmp_path / "text")]
    with pytest.raises(UserError, match=r"text, .*are not there; make them with"):
        prepare.run(["quickstart", *nowhere])
    with pytest.raises(UserError, match=r"the corpus .*train is missing"):
        prepare.run(["show", "quickstart", "--data.corpus", str(tmp_path), "--record", "3"])


@pytest.mark.parametrize("value", [["-3"], ["fox"], []])
def test_a_record_is_a_number(value):
    with pytest.raises(UserError, match="--record takes the number of a record"):
        prepare.run(["show", "quickstart", "--record", *value])


def test_help_of_show_names_its_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch/prepare.py"])
    with pytest.raises(SystemExit):
        prepare.run(["show", "quickstart", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m launch.prepare show quickstart ")
    assert "--record INT" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "--workers 0 must be at least 1"),
        ({"workers": 2}, "--workers and --beam need a --runner"),
        ({"beam": ("region=x",)}, "--workers and --beam need a --runner"),
    ],
)
def test_workers_need_a_runner(options, said):
    with pytest.raises(UserError, match=said):
        prepare.Options(**options)
