import json
from pathlib import Path

import pytest

from cm3jax.config import Experiment, TrainConfig
from cm3jax.errors import UserError
from launch import stages
from launch.stages import Stage, in_words, run_stages


def stage(path: Path, log: list[str], finishes: bool = True) -> Stage:
    def run():
        log.append(path.name)
        if finishes:
            path.touch()

    return Stage(path.name, 1, str(path), path.exists, run)


def test_finished_stages_are_reused_and_reported(tmp_path, capsys):
    log: list[str] = []
    three = [stage(tmp_path / name, log) for name in ("one", "two", "three")]
    (tmp_path / "one").touch()
    run_stages(three, tmp_path / "seconds.json")
    assert log == ["two", "three"]
    said = capsys.readouterr().out
    assert f"[1/3] one: reusing {tmp_path / 'one'}" in said
    assert f"[2/3] two: about 1 s, into {tmp_path / 'two'}" in said
    assert "next: three; about 1 s left in all" in said
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert seconds.keys() == {"two", "three"}
    run_stages(three, tmp_path / "seconds.json")
    assert log == ["two", "three"]
    assert json.loads((tmp_path / "seconds.json").read_text()) == seconds


def test_a_stage_that_stops_before_its_end_stops_the_chain(tmp_path):
    log: list[str] = []
    both = [stage(tmp_path / "one", log, finishes=False), stage(tmp_path / "two", log)]
    with pytest.raises(UserError, match="one stopped before its end"):
        run_stages(both, tmp_path / "seconds.json")
    assert log == ["one"]
    run_stages([stage(tmp_path / "one", log), both[1]], tmp_path / "seconds.json")
    assert log == ["one", "one", "two"]


def test_a_stage_that_was_told_to_stop_when_it_was_done_stops_the_chain(tmp_path):
    log: list[str] = []
    two = stage(tmp_path / "two", log)
    told = Stage("one", 1, "one", (tmp_path / "one").exists, lambda: not (tmp_path / "one").touch())
    with pytest.raises(UserError, match="stopped on request after one; give the same command"):
        run_stages([told, two], tmp_path / "seconds.json")
    assert "one" in json.loads((tmp_path / "seconds.json").read_text())
    run_stages([told, two], tmp_path / "seconds.json")
    assert log == ["two"]


def test_times_in_words():
    assert [in_words(s) for s in (0.2, 59, 600, 9000)] == ["1 s", "59 s", "10 minutes", "2.5 hours"]


def test_a_training_is_done_when_its_report_is_written(tmp_path, monkeypatch):
    member = Experiment("tiny", "clip", workdir=str(tmp_path), train=TrainConfig(steps=7))
    asked = []
    monkeypatch.setattr(stages, "train_experiment", lambda *given: asked.append(given))
    made = stages.training(member, 1, with_changes=True)
    (tmp_path / "checkpoints/7").mkdir(parents=True)
    assert not made.done()
    (tmp_path / "report.html").write_text('<main data-step="6">')
    assert not made.done()
    (tmp_path / "report.html").write_text('<main data-step="7">')
    assert made.done()
    made.run()
    assert asked == [(member, True)]
