import dataclasses
import time

import pytest

from cm3jax.errors import UserError
from cm3jax.io.files import read_json, write_json
from experiments.claims.claim import Result
from launch.report import RESULTS, ROWS, Options, command, measure, stored
from tests.experiments.claims.test_claim import MEASURED, ROW
from tests.experiments.miniature.scores.test_quickstart_page import METRICS, evaluation  # noqa: F401
from tests.pages import require_sound


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


def test_the_page_of_claims_is_rebuilt_from_what_is_stored(tmp_path, capsys):
    start = time.perf_counter()
    command(["--out", str(tmp_path)])
    assert time.perf_counter() - start < 60
    assert str(tmp_path / "index.html") in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    require_sound(page, tmp_path)
    names = [row.name for row in ROWS]
    assert [page.index(f'id="{name}"') for name in names] == sorted(
        page.index(f'id="{name}"') for name in names
    )
    assert {path.stem for path in RESULTS.glob("*.json")} <= set(names)
    assert all(path.stat().st_size < 1e6 for path in RESULTS.glob("*.json"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rerun", "contral"], "there is no claim 'contral'; the claims are control"),
        (["runs/x", "--rerun", "control"], "--rerun measures a claim and takes no run"),
    ],
)
def test_a_mistake_raises_user_error(argv, said):
    with pytest.raises(UserError, match=said):
        command(argv)


def test_a_measurement_that_was_killed_goes_on_and_counts_its_time(tmp_path, capsys):
    options = Options(out=str(tmp_path))
    keep = tmp_path / "samples" / "flags"

    def dies(bench):
        bench.say("half of it is done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(dataclasses.replace(ROW, measure=dies), options, tmp_path / "results")
    assert 0 < read_json(keep / "seconds.json", "the time")["seconds"] < 60
    write_json(keep / "seconds.json", {"seconds": 100.0})
    for name in ("thesis.tex", "thesis.json"):
        (keep / name).write_text("mine")
    (keep / "0123456789abcdef.json").write_text("[]")
    result = measure(ROW, options, tmp_path / "results", prompts=1)
    said = capsys.readouterr().out
    assert "flags: about 10 minutes on two CPU cores\n" in said
    assert "half of it is done" in said
    assert "flags: about 10 minutes on two CPU cores, 100 s of it done\n" in said
    assert 100 <= result.seconds < 160
    assert result.measured == MEASURED
    assert " cores of " in result.hardware
    assert Result.load(tmp_path / "results" / "flags.json") == result
    assert sorted(path.name for path in keep.rglob("*")) == ["thesis.json", "thesis.tex"]
