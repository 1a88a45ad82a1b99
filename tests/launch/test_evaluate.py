import json

import jax.numpy as jnp
import pytest

from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import scores_to_json
from cm3jax.io.files import write_json
from cm3jax.training.exported_run import LoadedRun, write_run
from launch.evaluate import run, table
from tests import tiny
from tests.evaluate.test_protocol import score


def test_a_table_has_value_interval_chance_and_regime():
    header, line = table({"heldout.docs_2": score(186)}).splitlines()
    assert header.split()[:2] == ["score", "value"]
    for part in ("heldout.docs_2", "0.930", "0.886–0.958", " 200 ", "zero-shot, 2 retrieved"):
        assert part in line


def test_diff_reads_results_and_metrics(tmp_path, capsys):
    write_json(tmp_path / "a.json", scores_to_json({"x": score(10)}))
    write_json(tmp_path / "b.json", scores_to_json({"x": score(10, seed=7)}))
    run(["diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "seed: 0 | 7" in capsys.readouterr().out


def test_files_that_are_not_results_raise_user_error(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 3})
    with pytest.raises(UserError, match="holds no scores"):
        run(["diff", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    sound = scores_to_json({"x.y": score(10)})
    for field, value in (("value", "high"), ("n", None), ("interval", [1]), ("interval", 3)):
        damaged = json.loads(json.dumps(sound))
        damaged["details"]["x"]["y"][field] = value
        write_json(tmp_path / "a.json", damaged)
        with pytest.raises(UserError, match=r"^the score x\.y is damaged"):
            run(["diff", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    del sound["details"]["x"]["y"]["protocol"]["reader"]
    for value in (sound, [sound], 3):
        write_json(tmp_path / "a.json", value)
        with pytest.raises(UserError):
            run(["diff", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    with pytest.raises(UserError, match="missing"):
        run(["diff", str(tmp_path / "no.json"), str(tmp_path / "a.json")])


def test_a_run_that_is_not_there_raises_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no trained run"):
        run(["emblems", "--run", str(tmp_path)])


@pytest.mark.parametrize("name", ["emblems", "emoji", "retrieval"])
def test_a_run_of_other_data_is_sent_to_its_own_evaluation(tmp_path, name):
    experiment = tiny.experiment(tmp_path, data=DataConfig(source="photos", batch=8))
    write_run(LoadedRun(experiment, {"params": {"table": jnp.zeros(1)}}, 0, {}), tmp_path / "run")
    said = r"was trained on photos, and these prompts are of em\w+; ask it by .* heldout"
    with pytest.raises(UserError, match=said):
        run([name, "--run", str(tmp_path / "run")])


def test_held_out_records_are_for_decoders(tmp_path):
    experiment = tiny.experiment(tmp_path, learner="vqgan")
    write_run(LoadedRun(experiment, {"params": {"table": jnp.zeros(1)}}, 0, {}), tmp_path / "run")
    with pytest.raises(UserError, match="is a run of a vqgan"):
        run(["heldout", "--run", str(tmp_path / "run")])
    with pytest.raises(UserError, match="--documents takes numbers from 0"):
        run(["heldout", "--run", "nowhere", "--documents", "-1"])
