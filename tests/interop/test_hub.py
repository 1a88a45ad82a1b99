"""Runs go to a hub and come back from it, over HTTP; what is wrong there is one sentence."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import (
    NO_SAMPLING,
    Protocol,
    Score,
    read_scores,
    scores_to_json,
)
from cm3jax.generation import loading
from cm3jax.interop import hub
from cm3jax.io.files import write_json
from cm3jax.training.companions import run_folder
from cm3jax.training.exported_run import write_run
from launch.convert import run as convert
from launch.evaluate import run as evaluate
from tests.interop.hub_server import TOKEN, serving

PROTOCOL = Protocol(
    prompts="probe",
    prompts_hash="0",
    split="held out",
    retrieved=0,
    documents="none",
    bank="none",
    samples=1,
    seed=0,
    licensed_share=1.0,
    reader="a program",
    weights="5f3a",
    code_version="0.2.0+0",
    **NO_SAMPLING,
)

THERE_AND_BACK = """
import json, sys
import numpy as np
import cm3jax
from cm3jax.errors import UserError
from launch.convert import run

decoder, scores = sys.argv[1:]
run(["export", decoder, "--push", "someone/tiny", "--scores", scores])
run(["export", decoder, "--push", "someone/hidden", "--private"])
run(["export", decoder, "--push", "someone/again"])
model = cm3jax.load("hf:someone/tiny")
drawn = model.generate("a red fox")
said = []
for wrong in ("hf:someone/else", "hf:someone/tiny@none", "hf:someone/foreign"):
    try:
        cm3jax.load(wrong)
    except UserError as error:
        said.append(str(error))
print(json.dumps({"ids": drawn.ids.tolist(), "encoder": model.encoder.fingerprint, "said": said}))
"""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A run as training leaves it: with licences, and paths of its machine."""
    folder = testing.write_chain(tmp_path_factory.mktemp("chain"))
    run = load_run(folder)
    data = DataConfig(
        bank=run.experiment.data.bank,
        mixture=(("/secret/place/emblems:scene", 1.0),),
        source="/secret/place/pictures",
    )
    licences = {"CC0-1.0": 0.75, "": 0.25}
    experiment = dataclasses.replace(run.experiment, data=data)
    write_run(dataclasses.replace(run, experiment=experiment, licences=licences), folder)
    return folder


@pytest.mark.slow  # what a push replaces, and what is read, is tested below
def test_a_run_goes_up_and_comes_back(tmp_path, decoder):
    write_json(tmp_path / "s.json", scores_to_json({"drawn": Score.share([True], 0.1, PROTOCOL)}))
    (decoder / "pickled.bin").write_bytes(b"never leaves")
    others = {"evil.bin": b"a pickle", "evil/code.py": b"1 / 0"}
    with serving() as server:
        earlier = {"README.md": hub.sign_card("# Tiny\n").encode()}
        server.commits["someone/tiny"] = [others | earlier]
        earlier |= {"scores.json": b"{}", "clip/config.json": b"{}"}
        server.commits["someone/again"] = [others | earlier]
        weights = {"model-00001-of-00002.safetensors": b"many gigabytes"}
        server.commits["someone/foreign"] = [{"config.json": b"{}"} | weights]
        there = os.environ | {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        call = [sys.executable, "-c", THERE_AND_BACK, decoder, tmp_path / "s.json"]
        done = subprocess.run(call, env=there, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *_, last = done.stdout.splitlines()
        answer = json.loads(last)
        assert f'uploaded to {server.address}/someone/tiny; cm3jax.load("hf:someone/tiny")' in (
            done.stdout
        )
    here = cm3jax.load(decoder)
    assert answer["ids"] == here.generate("a red fox").ids.tolist()
    assert answer["encoder"] == here.encoder.fingerprint
    assert answer["said"][0].startswith("neither the hub nor its cache gave hf:someone/else (Rep")
    assert answer["said"][1].startswith("neither the hub nor its cache gave hf:someone/tiny@none")
    assert answer["said"][2].startswith("hf:someone/foreign has no params.safetensors")
    assert server.private == {"someone/hidden": True}
    files, hidden, again = (
        server.commits[f"someone/{name}"][-1] for name in ("tiny", "hidden", "again")
    )
    assert "scores.json" not in again  # of the run that was there before
    assert again.keys() == hidden.keys() | others.keys()
    assert {name: files.pop(name) for name in others} == others
    parts = {"text/text.model", "vqgan/params.safetensors", "vqgan/config.json", "clip/text.model"}
    parts |= {"clip/params.safetensors", "clip/config.json", "params.safetensors", "config.json"}
    assert files.keys() == parts | {"README.md", "scores.json"}
    assert hidden.keys() == parts | {"README.md"}
    # One file of the same content as another is downloaded once.
    assert parts - set(server.downloaded) in ({"text/text.model"}, {"clip/text.model"})
    assert set(server.downloaded) < parts | {"scores.json", "README.md"}
    assert not any(b"/secret" in content for content in files.values())
    card = files["README.md"].decode()
    for line in (
        "library_name: cm3jax",
        'model = cm3jax.load("hf:someone/tiny")',
        "| CC0-1.0 | 75.0% |",
        "| unknown | 25.0% |",
        "| drawn | 1 | 0.2065 to 1 | 1 | nothing drawn |",
        "- `drawn`: nothing drawn; prompts probe; split held out;",
        f"| vocab fingerprint | {here.vocab.fingerprint} |",
    ):
        assert line in card
    assert "None were given" in hidden["README.md"].decode()
    assert json.loads(files["scores.json"])["drawn"] == 1.0


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub that this process talks to."""
    from huggingface_hub import constants

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        for name, value in {"HF_TOKEN": TOKEN, "NO_PROXY": "*", "no_proxy": "*"}.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_push_replaces_pushes_only(tmp_path, decoder, served, capsys):
    served.private["me/own"] = False
    served.commits["me/own"] = [{".gitattributes": b"made with the repository"}]
    (decoder / "pickled.bin").write_bytes(b"never leaves")
    push = ["export", str(decoder), "--push"]
    convert([*push, "me/own"])
    assert f"uploaded to {served.address}/me/own; " in capsys.readouterr().out
    pushed = served.commits["me/own"][-1]
    assert "params.safetensors" in pushed
    assert "pickled.bin" not in pushed
    assert not any(b"/secret" in content for content in pushed.values())
    assert hub.require_pushed("me/none", private=True) is None
    with pytest.raises(UserError, match="me/own on the hub is public, and --private is for new"):
        convert([*push, "me/own", "--private"])

    card, config = {"README.md": pushed["README.md"]}, {"config.json": b"{}"}
    signed = pushed["README.md"].rpartition(b"<!-- ")[2]
    foreign = {
        "me/their-model": config | {"README.md": b"---\nlibrary_name: cm3jax\n---\n# Theirs\n"},
        "me/no-card": config,
        "me/only-code": {"train.py": b"print(1)"},
        "me/edited": pushed | {"README.md": card["README.md"].replace(b"# own", b"# Our own")},
        "me/continued": pushed | {"README.md": card["README.md"] + b"See our paper.\n"},
        "me/signed": pushed | {"README.md": b"# Theirs\n<!-- " + signed},
        "me/not-text": pushed | {"README.md": b"\xff\xfe"},
    }
    for name, files in foreign.items():
        served.commits[name] = [files]
        with pytest.raises(UserError, match=f"{name} on the hub holds files that --push did not"):
            convert([*push, name])
        assert served.commits[name] == [files]

    found = hub.require_pushed("me/own", private=False)
    served.commits["me/own"].append(pushed | {"LICENSE": b"ours to choose"})
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="the hub did not take me/own"):  # since it has changed
        hub.upload(tmp_path / "new", "me/own", False, found)
    convert([*push, "me/own"])
    assert len(served.commits["me/own"]) == 4
    assert served.commits["me/own"][-1] == pushed | {"LICENSE": b"ours to choose"}


def test_a_run_is_of_one_version_in_a_process_wherever_it_is_read(decoder, served):
    convert(["export", str(decoder), "--push", "me/once"])
    run = load_run("hf:me/once")
    assert run.fingerprints == load_run(decoder).fingerprints
    first = run_folder("hf:me/once")
    pushed = served.commits["me/once"][-1]
    served.commits["me/once"].append(pushed | {"config.json": b"{}", "params.safetensors": b""})
    assert run_folder("hf:me/once") == first
    own = loading.load("hf:me/once", decoder.parent / "bank")
    assert own.vocab.fingerprint == cm3jax.load(decoder).vocab.fingerprint
    assert len(own.retriever.bank) == 12
    with pytest.raises(UserError, match="damaged"):  # a caller of load wants what is there now
        cm3jax.load("hf:me/once")


@pytest.mark.slow  # the engine is compiled
def test_evaluation_takes_a_run_of_the_hub(tmp_path, decoder, served, capsys):
    convert(["export", str(decoder), "--push", "me/scored"])
    for number, picture in enumerate(testing.pictures(3)):
        PIL.Image.fromarray(picture).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(testing.CAPTIONS[number][:9])
    where = ["--source", str(tmp_path), "--bank", str(decoder.parent / "bank")]
    scores = []
    for name, run in {"here": str(decoder), "hub": "hf:me/scored"}.items():
        out = str(tmp_path / f"{name}.json")
        evaluate(["heldout", "--run", run, *where, "--documents", "1", "--out", out])
        scores.append(read_scores(out))
    assert scores[0] == scores[1]
    assert "hf:me/scored on held-out records" in (tmp_path / "hub.html").read_text()
    with pytest.raises(UserError, match="hf:me/scored is the run of a decoder, not of an image"):
        evaluate(["reconstruction", "--run", "hf:me/scored"])
    with pytest.raises(UserError, match="nor its cache gave hf:me/none"):
        evaluate(["emblems", "--run", "hf:me/none"])


def test_folders_without_a_run_and_malformed_names_are_refused(tmp_path, decoder):
    for name in ("hf:", "hf:name", "hf:a/b/c", "hf:a/b@"):
        with pytest.raises(UserError, match="is not an id of the hub"):
            cm3jax.load(name)
    with pytest.raises(UserError, match="--push takes OWNER/NAME"):
        convert(["export", str(decoder), "--push", "name"])
    for both in ([], ["--push", "a/b", "--out", str(tmp_path / "out")]):
        with pytest.raises(UserError, match="either --out FOLDER"):
            convert(["export", str(decoder), *both])
    with pytest.raises(UserError, match="belong to --push"):
        convert(["export", str(decoder), "--out", str(tmp_path / "out"), "--private"])
    with pytest.raises(UserError, match="is a run of a clip; give a decoder's"):
        hub.write_whole_run(decoder.parent / "clip", tmp_path / "whole")
    assert not list(tmp_path.iterdir())


def test_a_whole_run_is_the_same_run(tmp_path, decoder):
    hub.write_whole_run(decoder, tmp_path / "whole")
    theirs, ours = load_run(tmp_path / "whole"), load_run(decoder)
    assert theirs.licences == ours.licences
    assert theirs.fingerprints == ours.fingerprints
    assert theirs.experiment.data.mixture == (("emblems:scene", 1.0),)
    assert theirs.experiment.data.bank == ""
    np.testing.assert_array_equal(
        theirs.variables["params"]["embedding"], ours.variables["params"]["embedding"]
    )
    there = cm3jax.load(tmp_path / "whole")
    with pytest.raises(UserError, match=r"names no memory bank \(data.bank\); give one"):
        there.generate("a red fox", retrieve=1)
    bank = cm3jax.load(tmp_path / "whole", decoder.parent / "bank")
    assert len(bank.generate("a red fox", retrieve=1).documents) == 1
