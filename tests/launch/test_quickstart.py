import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from launch import quickstart
from launch.quickstart import Options, Stage, located, run_stages

TINY = 0.005


def stage(path: Path, log: list[str], finishes: bool = True) -> Stage:
    def run():
        log.append(path.name)
        if finishes:
            path.touch()

    return Stage(path.name, 1, str(path), path.exists, run)


def test_what_is_finished_is_reused_and_said(tmp_path, capsys):
    log: list[str] = []
    stages = [stage(tmp_path / name, log) for name in ("one", "two", "three")]
    (tmp_path / "one").touch()
    run_stages(stages, tmp_path / "seconds.json")
    assert log == ["two", "three"]
    assert f"[1/3] one: reusing {tmp_path / 'one'}" in capsys.readouterr().out
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert seconds.keys() == {"two", "three"}
    run_stages(stages, tmp_path / "seconds.json")
    assert log == ["two", "three"]
    assert json.loads((tmp_path / "seconds.json").read_text()) == seconds


def test_a_stage_that_stops_before_its_end_stops_the_chain(tmp_path):
    log: list[str] = []
    stages = [stage(tmp_path / "one", log, finishes=False), stage(tmp_path / "two", log)]
    with pytest.raises(UserError, match="one stopped before its end"):
        run_stages(stages, tmp_path / "seconds.json")
    assert log == ["one"]
    run_stages([stage(tmp_path / "one", log), stages[1]], tmp_path / "seconds.json")
    assert log == ["one", "one", "two"]


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_a_scale_is_a_share(scale):
    with pytest.raises(UserError, match="give 0 to 1"):
        Options(scale=scale)


def test_the_chain_is_one_chain_inside_its_directories(tmp_path):
    runs, data = tmp_path / "runs", tmp_path / "data"
    chain = located(Options(str(runs), str(data)))
    for part, member in chain.items():
        assert member.run_dir == str(runs / part)
        assert member.tokenizers.text == chain["text"].run_dir
        assert member.tokenizers.image == chain["vqgan"].run_dir
        assert member.retrieval.encoder == chain["clip"].run_dir
        for path in (member.data.raw, member.data.corpus, member.data.bank):
            assert path.startswith(str(data))
    assert len({(m.data.raw, m.data.records, m.seed) for m in chain.values()}) == 1


def test_a_scale_shortens_work_and_nothing_else(tmp_path):
    whole = located(Options())["decoder"]
    short = located(Options(scale=0.1))["decoder"]
    assert short.train.steps == round(whole.train.steps * 0.1)
    assert short.data.records == round(whole.data.records * 0.1)
    assert short.train.log_every <= short.train.steps
    restored = dataclasses.replace(short, train=whole.train, data=whole.data)
    assert restored == whole


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_chain_at_a_small_scale(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "SHIPPED", tmp_path / "nothing shipped")
    workdir = tmp_path / "runs"
    arguments = ["--workdir", str(workdir), "--data", str(tmp_path / "data")]
    arguments += ["--scale", str(TINY)]
    quickstart.command(arguments)
    said = capsys.readouterr().out
    assert "no shipped weights" in said
    metrics = json.loads((workdir / "metrics.json").read_text())
    here = metrics["trained_here"]
    for name in ("heldout_emblem_accuracy", "heldout_pair_accuracy"):
        for documents in ("docs_0", "docs_1", "docs_2"):
            assert isinstance(here[name][documents], float)
            detail = here["details"][name][documents]
            assert detail["n"] == Options(scale=TINY).count(200, 4)
            assert detail["protocol"]["retrieved"] == int(documents[-1])
    for name in ("caption_exact", "infill_exact", "scene_accuracy", "copied_share"):
        assert 0.0 <= here[name] <= 1.0
    assert here["details"]["caption_exact"]["protocol"]["regime"] == "zero-shot"
    assert len(metrics["weights"]["trained_here"]["decoder"]) == 16
    page = (workdir / "report.html").read_text()
    assert page.count("<polyline") >= 2
    assert page.count("data:image/png") > 20

    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("checkpoints/*/*")}
    quickstart.command(arguments)
    again = capsys.readouterr().out
    assert again.count("reusing") == said.count("done in") - 1  # all stages; the last line is all
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("checkpoints/*/*")} == before
    assert json.loads((workdir / "metrics.json").read_text()) == metrics


def start(folder: Path) -> subprocess.Popen:
    arguments = ["--workdir", folder / "runs", "--data", folder / "data", "--scale", str(TINY)]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.quickstart", *map(str, arguments)],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_until_killed(folder: Path, seconds: dict[str, float], killed: list[str]) -> int:
    """Kill the first stage that is not in `killed`, half-way through; the exit code."""
    process = start(folder)
    for line in process.stdout:
        stage = re.match(r"\[\d+/\d+\] (.*): about", line)
        if stage and stage[1] not in killed:
            killed.append(stage[1])
            time.sleep(seconds[stage[1]] / 2)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    return process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_it_ends_the_same(tmp_path):
    undisturbed = start(tmp_path / "whole")
    said, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, said
    seconds = json.loads((tmp_path / "whole/runs/results/seconds.json").read_text())
    killed: list[str] = []
    codes = [run_until_killed(tmp_path / "killed", seconds, killed) for _ in seconds]
    assert sorted(killed) == sorted(seconds)
    assert codes == [-signal.SIGKILL] * len(seconds)
    assert run_until_killed(tmp_path / "killed", seconds, killed) == 0
    whole, pieces = (
        json.loads((tmp_path / name / "runs/metrics.json").read_text())
        for name in ("whole", "killed")
    )
    for name in ("weights", "pictures", "trained_here"):
        assert pieces[name] == whole[name], name
