import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from launch import quickstart
from launch.quickstart import Options, located

TINY = 0.005


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
    assert [Options().seconds(90), Options(scale=0.1).seconds(90)] == [90, 18]
    restored = dataclasses.replace(short, train=whole.train, data=whole.data)
    assert restored == whole


def test_without_shipped_weights_only_the_model_trained_here_is_evaluated(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(quickstart, "SHIPPED", tmp_path / "nothing shipped")
    names = [stage.name for stage in quickstart.stages(Options(scale=TINY))]
    assert names[-1] == "evaluate trained here"
    assert "no shipped weights in" in capsys.readouterr().out


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


def run(folder: Path) -> str:
    """Run to the end; what was said."""
    process = start(folder)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """The folder of an undisturbed run, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_chain_at_a_small_scale(whole):
    folder, said = whole
    workdir = folder / "runs"
    metrics = json.loads((workdir / "metrics.json").read_text())
    for model in ("trained_here", "shipped"):
        figures = metrics[model]
        for name in ("heldout_emblem_accuracy", "heldout_pair_accuracy"):
            for documents in ("docs_0", "docs_1", "docs_2"):
                assert isinstance(figures[name][documents], float)
                detail = figures["details"][name][documents]
                assert detail["n"] == Options(scale=TINY).count(200, 4)
                assert detail["protocol"]["retrieved"] == int(documents[-1])
        for name in ("caption_exact", "infill_exact", "scene_accuracy", "copied_share"):
            assert 0.0 <= figures[name] <= 1.0
        assert figures["details"]["caption_exact"]["protocol"]["regime"] == "zero-shot"
        assert len(metrics["weights"][model]["decoder"]) == 16
    page = (workdir / "report.html").read_text()
    assert page.count("<polyline") >= 2
    assert page.count("data:image/png") > 20

    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("checkpoints/*/*")}
    again = run(folder)
    assert again.count("reusing") == said.count("done in") - 1  # all stages; the last line is all
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("checkpoints/*/*")} == before
    assert json.loads((workdir / "metrics.json").read_text()) == metrics


def is_killed_in(stage: str, delay: float, folder: Path) -> bool:
    """Kill a run `delay` seconds after `stage` began; whether the stage had not ended by then."""
    process = start(folder)
    with process.stdout as lines:
        assert any(re.match(rf"\[\d+/\d+\] {stage}: about", line) for line in lines)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        said = lines.read()
    ended = f"{stage}: done in" in said
    # One that failed by itself was not killed.
    assert process.wait() == -signal.SIGKILL or ended, said
    return not ended


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_it_ends_the_same(whole, tmp_path):
    undisturbed, said = whole
    folder = tmp_path / "killed"
    folder.mkdir()
    seconds = json.loads((undisturbed / "runs/results/seconds.json").read_text())
    stages = re.findall(r"\] (.*): about", said)
    assert len(stages) == 9
    for stage in stages:
        before, delay = tmp_path / stage, seconds[stage] / 2
        shutil.copytree(folder, before)
        # What the first run had to compile, this one has not: a stage can end before its half.
        while not is_killed_in(stage, delay, folder):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            delay /= 2
    run(folder)
    whole_metrics, pieces = (
        json.loads((path / "runs/metrics.json").read_text()) for path in (undisturbed, folder)
    )
    for name in ("weights", "pictures", "trained_here"):
        assert pieces[name] == whole_metrics[name], name
