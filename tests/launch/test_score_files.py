"""No evaluation replaces a file that none wrote, and it says so before any work."""

import os
import threading

import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import read_scores
from cm3jax.io.experiment_json import save_experiment
from cm3jax.io.files import write_json
from cm3jax.report.run_page import write_report
from launch.evaluate import run
from launch.score_files import ScoreFiles, page_of
from tests import tiny
from tests.evaluate.test_protocol import score

SCORES = {"heldout.docs_2": score(186)}

COCO = ["coco_fid", "--captions", "c", "--real", "r", "--inception", "i", "--made", "m", "--out"]


@pytest.fixture
def trained(tmp_path):
    """A run directory with its config and its report, and what is in both."""
    save_experiment(tmp_path / "config.json", tiny.experiment(tmp_path))
    write_report(tmp_path, step=7)
    return {name: (tmp_path / name).read_bytes() for name in ("config.json", "report.html")}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["heldout", "--run", "nowhere", "--out", "report.json"], "the page of the scores would"),
        (["tasks", "--run", "nowhere", "--out", "report"], "the page of the scores would replace"),
        (["emblems", "--run", "nowhere", "--out", "report.x"], "the page of the scores would"),
        (["perplexity", "--run", "nowhere", "--out", "config.json"], "the scores would replace"),
        (["heldout", "--run", "nowhere", "--out", "config.json"], "the scores would replace"),
        (["heldout", "--run", "nowhere", "--out", "report.html"], "such as .*report.json"),
        (["retrieval", "--run", "nowhere", "--out", "."], "is a folder; give a JSON file"),
        (["emoji", "--run", "nowhere", "--out", "a.samples"], "such as .*a.json"),
        ([*COCO, "."], "the page of the scores would replace"),
    ],
)
def test_the_files_of_a_run_stay(tmp_path, trained, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        run(argv)
    assert sorted(os.listdir(tmp_path)) == sorted(trained)
    assert {name: (tmp_path / name).read_bytes() for name in trained} == trained


def test_statistics_of_another_program_stay(tmp_path):
    (tmp_path / "reference.npz").write_bytes(b"another's")
    with pytest.raises(UserError, match=r"reference\.npz is another file, which the statistics"):
        run([*COCO, str(tmp_path)])


def test_an_evaluation_without_a_page_needs_no_place_for_one(tmp_path, trained):
    files = ScoreFiles.named(str(tmp_path / "report.json"), with_page=False)
    files.write(SCORES)
    assert read_scores(tmp_path / "report.json") == SCORES
    assert (tmp_path / "report.html").read_bytes() == trained["report.html"]


def test_its_own_files_are_replaced(tmp_path):
    (tmp_path / "scores.json").touch()  # as mktemp leaves it
    for value in (186, 190):
        new = {"heldout.docs_2": score(value)}
        files = ScoreFiles.named(str(tmp_path / "scores.json"))
        files.write(new, page_of("a run", "about", new, []))
        assert read_scores(tmp_path / "scores.json") == new
    assert "0.950" in (tmp_path / "scores.html").read_text()
    page = (tmp_path / "scores.html").read_text().replace(' data-page="scores"', "")
    (tmp_path / "scores.html").write_text(page)  # as earlier versions wrote it
    assert ScoreFiles.named(str(tmp_path / "scores.json")) == files
    assert ScoreFiles.named("") is None


NO_STAMP = {"value": 0.9, "n": 3, "interval": [0.8, 1], "protocol": {}}


@pytest.mark.parametrize(
    "content",
    [{}, [], {"a": {"b": 0.9}}, {"details": 3}, {"a": 0.9, "details": {"a": NO_STAMP}}],
)
def test_other_json_stays(tmp_path, content):
    write_json(tmp_path / "a.json", content)
    with pytest.raises(UserError, match="is another file, which the scores would replace"):
        ScoreFiles.named(str(tmp_path / "a.json"))


def test_a_file_in_place_of_the_samples_is_found_at_once(tmp_path):
    (tmp_path / "a.samples").touch()
    with pytest.raises(UserError, match=r"a\.samples is a file, where the samples go"):
        ScoreFiles.named(str(tmp_path / "a.json"))


def test_two_evaluations_of_one_name_are_one_and_a_sentence(tmp_path):
    files = ScoreFiles.named(str(tmp_path / "a.json"))
    files.samples.mkdir()
    halves = [
        tmp_path / ".a.json.0123abcd.part",
        tmp_path / ".a.html.0123abcd.part",
        files.samples / f".{'0' * 16}.json.0123abcd.part",
    ]
    mine = [tmp_path / ".b.json.0123abcd.part", files.samples / ".thesis.0123abcd.part"]
    for path in (*halves, *mine):
        path.touch()
    with files.held("evaluating a run"):
        assert not [path for path in halves if path.exists()]
        refused = []

        def second():
            try:
                with files.held("evaluating another"):
                    pass
            except UserError as error:
                refused.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "a.json is in use: evaluating a run (process " in refused[0]
    assert all(path.exists() for path in mine)
