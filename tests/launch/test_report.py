import dataclasses
import time

import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.results import Cell
from cm3jax.io.files import read_json, write_atomic, write_json
from cm3jax.io.folders import is_held
from cm3jax.retrieval.bank_files import mark_of
from cm3jax.retrieval.pages import GONE
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import remove
from experiments.claims.claim import Result
from experiments.claims.claims_page import write_page
from experiments.miniature.scores.quickstart_page import report as quickstart_page
from launch.report import RESULTS, ROWS, Options, command, measure, stored, write_report
from launch.score_files import ScoreFiles, page_of
from tests.experiments.claims.test_claim import MEASURED, ROW
from tests.experiments.miniature.scores.test_quickstart_page import METRICS, evaluation  # noqa: F401
from tests.pages import require_sound
from tests.retrieval.test_takedown import small


def test_a_report_is_rebuilt_from_a_run_directory(evaluation, tmp_path, capsys):  # noqa: F811
    write_json(tmp_path / "metrics.json", METRICS)
    other = dataclasses.replace(evaluation, run="elsewhere")
    evaluation.save(tmp_path / "results" / "shipped.json")
    other.save(tmp_path / "results" / "trained_here.json")
    assert stored(tmp_path) == {"shipped": evaluation, "trained_here": other}
    write_atomic(tmp_path / ".report.html.0123abcd.part", "half")  # as a killed process leaves it
    command([str(tmp_path)])
    assert not (tmp_path / ".report.html.0123abcd.part").exists()
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "elsewhere" in page


def test_results_and_pages_that_are_written_after_a_removal_show_none_of_it(evaluation, tmp_path):  # noqa: F811
    """By who opened the bank before it."""
    bank = small(tmp_path / "bank", "fox", "owl")
    cells = (Cell.of("retrieved", None, "its text", document=mark_of(bank.meta(0))),)
    figures = (dataclasses.replace(evaluation.figures[0], cells=cells),)
    late = dataclasses.replace(evaluation, figures=figures, bank=str(bank.path))
    remove(bank, Removed(keys=("fox",)), [tmp_path / "runs"], lambda line: None)
    late.save(tmp_path / "shipped.json")
    assert "its text" not in (tmp_path / "shipped.json").read_text()
    files = ScoreFiles.named(str(tmp_path / "scores.json"))
    files.write(late.scores, page_of("a run", "about", late.scores, figures), [bank.path])
    assert "its text" not in (tmp_path / "scores.html").read_text()
    shown = dataclasses.replace(MEASURED, figures=figures)
    Result(shown, "", "", 1.0, {}, {}).save(tmp_path / "results" / f"{ROW.name}.json")
    page = write_page(tmp_path / "page", (ROW,), tmp_path / "results", [bank.path])
    assert GONE in page.read_text()
    assert "its text" not in page.read_text()
    assert "its text" not in (page.parent / "data" / f"{ROW.name}.json").read_text()


def test_a_report_that_is_read_before_a_removal_and_written_after_it_shows_none_of_it(
    evaluation,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    bank = small(tmp_path / "bank", "fox", "owl")
    cells = (Cell.of("retrieved", None, "its text", document=mark_of(bank.meta(0))),)
    figures = (dataclasses.replace(evaluation.figures[0], cells=cells),)
    shown = dataclasses.replace(evaluation, figures=figures, bank=str(bank.path))
    run = tmp_path / "runs" / "quickstart"
    write_json(run / "metrics.json", METRICS)
    shown.save(run / "results" / "shipped.json")
    write_report(run)
    assert "its text" in (run / "report.html").read_text()

    def removed_first(*given):
        assert is_held(run), "another's sweep would delete the half of it"
        remove(bank, Removed(keys=("fox",)), [tmp_path / "runs"], lambda line: None)
        return quickstart_page(*given)

    monkeypatch.setattr("launch.report.report", removed_first)
    write_report(run)
    assert GONE in (run / "report.html").read_text()
    assert "its text" not in (run / "report.html").read_text()


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match="the run's metrics is missing"):
        command([str(tmp_path)])
    write_json(tmp_path / "metrics.json", METRICS)
    with pytest.raises(UserError, match="holds no evaluation"):
        command([str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_the_page_of_claims_is_rebuilt_from_what_is_stored(tmp_path, capsys):
    start = time.perf_counter()
    halves = [".index.html.0123abcd.part", "data/.control.json.0123abcd.part"]
    for name in halves:  # as killed processes leave them
        write_atomic(tmp_path / name, "half")
    command(["--out", str(tmp_path)])
    assert not any((tmp_path / name).exists() for name in halves)
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


def test_help_names_the_claims(capsys):
    with pytest.raises(SystemExit):
        command(["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    names = [row.name for row in ROWS]
    assert f"{', '.join(names[:-1])} or {names[-1]}." in words


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
