import dataclasses

import pytest

from cm3jax.errors import UserError
from cm3jax.files import write_json
from launch.report import command, stored
from tests.evaluate.test_page import METRICS, evaluation  # noqa: F401


def test_a_report_is_rebuilt_from_a_run_directory(evaluation, tmp_path, capsys):  # noqa: F811
    write_json(tmp_path / "metrics.json", METRICS)
    other = dataclasses.replace(evaluation, run="elsewhere")
    evaluation.save(tmp_path / "results" / "shipped.json")
    other.save(tmp_path / "results" / "trained_here.json")
    assert stored(tmp_path) == {"shipped": evaluation, "trained_here": other}
    command([str(tmp_path)])
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "elsewhere" in page


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match="the run's metrics is missing"):
        command([str(tmp_path)])
    write_json(tmp_path / "metrics.json", METRICS)
    with pytest.raises(UserError, match="holds no evaluation"):
        command([str(tmp_path)])
    assert not (tmp_path / "report.html").exists()
