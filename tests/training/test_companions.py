"""A run finds what it was made with, wherever both lie now, and takes nothing else for it."""

import dataclasses
import json
import shutil

import jax
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.errors import UserError
from cm3jax.generation.loading import load_encoder
from cm3jax.training.companions import companion, encoder_fingerprint
from cm3jax.training.exported_run import LoadedRun, write_run
from tests.tiny import experiment


def run_in(workdir):
    return LoadedRun(experiment(workdir), {}, 1, {})


def mark(path):
    return (path / "mark").read_text()


def put(path, content="right"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "mark").write_text(content)
    return path


def find(run_dir, workdir, path, wanted="right"):
    return companion(run_dir, run_in(workdir), str(path), wanted, mark)


def test_the_path_of_the_config_goes_before_namesakes(tmp_path):
    right, run = put(tmp_path / "weights" / "text"), tmp_path / "runs" / "sft"
    put(tmp_path / "runs" / "text", "wrong")
    assert find(run, run, right) == right
    assert find(run, run, right, wanted="") == right
    put(right, "changed since")
    put(run / "text")
    assert find(run, run, right) == run / "text"


def test_a_moved_run_finds_its_parts_from_its_new_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "new"
    for part in ("runs/tokenizers/text", "runs/miniature/text"):
        put(moved / part, "right" if "tokenizers" in part else "wrong")
    run = moved / "runs" / "miniature" / "decoder"
    for wanted in ("right", ""):
        found = find(run, "runs/miniature/decoder", "runs/tokenizers/text", wanted)
        assert found == moved / "runs/tokenizers/text"
    put(tmp_path / "runs/tokenizers/text", "wrong")  # another checkout's, seen from here
    found = find(run, "runs/miniature/decoder", "runs/tokenizers/text")
    assert found == moved / "runs/tokenizers/text"
    absolute = find(run, "/gone/runs/miniature/decoder", "/gone/runs/tokenizers/text")
    assert absolute == moved / "runs/tokenizers/text"


def test_exported_weights_are_shipped_with_their_parts(tmp_path):
    run, elsewhere = put(tmp_path / "weights" / "sft"), put(tmp_path / "runs" / "clip")
    (run / "params.safetensors").touch()
    beside = put(tmp_path / "weights" / "clip")
    assert find(run, "", elsewhere, wanted="") == beside
    put(beside, "wrong")
    assert find(run, "", elsewhere) == elsewhere


def test_several_wrong_companions_raise_user_error(tmp_path):
    run = put(tmp_path / "run")
    put(run / "text", "one")
    put(tmp_path / "text", "two")
    with pytest.raises(UserError, match=r"fingerprint right, but there are .*\(one\), .*\(two\)"):
        find(run, run, "text")


@pytest.fixture
def chain(tmp_path):
    testing.write_chain(tmp_path / "chain")
    return tmp_path / "chain"


def test_a_run_loads_with_parts_of_other_runs(chain, tmp_path):
    """`runs/miniature/sft`, made with shipped tokenizers, beside tokenizers of one's own."""
    home = tmp_path / "runs"
    shutil.copytree(chain / "decoder", home / "sft")
    config = json.loads((home / "sft" / "config.json").read_text())
    for name in ("text", "image"):
        config["tokenizers"][name] = str(chain / config["tokenizers"][name].rpartition("/")[2])
    (home / "sft" / "config.json").write_text(json.dumps(config))
    others = load_run(chain / "vqgan")
    noisy = jax.tree.map(lambda leaf: leaf + 1, others.variables)
    write_run(dataclasses.replace(others, variables=noisy), home / "vqgan")
    testing.TextTokenizer.train(testing.CAPTIONS[::-1] * 2, 300).save(home / "text")
    right = cm3jax.load(str(chain / "decoder")).vocab.fingerprint
    assert cm3jax.load(str(home / "sft")).vocab.fingerprint == right


def test_a_run_takes_no_other_encoder_than_its_own(chain):
    run = load_run(chain / "decoder")
    own = load_encoder(chain / "decoder", run).fingerprint
    knows = dataclasses.replace(run, data={"encoder 1": own, "encoder 2": own, "corpus 1": "x"})
    assert encoder_fingerprint(knows) == own
    assert load_encoder(chain / "decoder", knows).fingerprint == own
    other = dataclasses.replace(run, data={"encoder": "other"})
    with pytest.raises(UserError, match=f"decoder was made with the encoder other, .* has {own}"):
        load_encoder(chain / "decoder", other)
    assert (
        encoder_fingerprint(dataclasses.replace(run, data={"encoder 1": "a", "encoder 2": "b"}))
        == ""
    )


def test_an_export_remembers_its_data(chain, tmp_path):
    run = dataclasses.replace(load_run(chain / "decoder"), data={"encoder": "abc"})
    write_run(run, tmp_path / "out")
    assert load_run(tmp_path / "out").data == {"encoder": "abc"}


def test_data_without_a_name_is_no_encoder(tmp_path):
    run = LoadedRun(experiment(tmp_path), {}, 0, {}, data={"": "x", "encoder of train": "mark"})
    assert encoder_fingerprint(run) == "mark"
