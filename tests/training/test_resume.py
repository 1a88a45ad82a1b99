"""What may differ between two lives of a run, and what is said and refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cm3jax.config import (
    CheckpointConfig,
    CM3Config,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from cm3jax.data.pipeline import Position, RecordStream
from cm3jax.errors import UserError
from cm3jax.train import train
from cm3jax.training import metrics, resume
from tests import tiny
from tests.tiny import experiment, learner

SHORT = TrainConfig(steps=4, log_every=1, validate_every=0)
LONGER = dataclasses.replace(SHORT, steps=6)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run of four steps."""
    config = experiment(tmp_path_factory.mktemp("original"), train=SHORT)
    train(learner(config))
    return config


@pytest.fixture
def begun(original, tmp_path):
    """A copy of it, which may be gone on with."""
    shutil.copytree(original.workdir, tmp_path / "run")
    return dataclasses.replace(original, workdir=str(tmp_path / "run"))


def go_on(config, with_changes=False, rows=None, **fields):
    fields = {"train": LONGER} | fields
    again = dataclasses.replace(config, **fields)
    return train(learner(again, **rows or {}), resume_with_changes=with_changes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": 7}, "seed 0 → 7"),
        ({"data": DataConfig(batch=4)}, "data.batch 8 → 4"),
        ({"optim": OptimConfig(peak_lr=2e-2, warmup_steps=5)}, "optim.peak_lr 0.01 → 0.02, opt"),
        ({"cm3": CM3Config(mean_masks=3.0)}, "cm3.mean_masks 1.0 → 3.0"),
    ],
)
def test_what_decides_the_rest_of_a_run_is_refused(begun, fields, said, capsys):
    config = (Path(begun.workdir) / "config.json").read_text()
    with pytest.raises(UserError, match=f"to step 4 with other options: {said}.*by --resume-with"):
        go_on(begun, **fields)
    assert (Path(begun.workdir) / "config.json").read_text() == config
    assert int(go_on(begun, with_changes=True, **fields).step) == 6
    assert said in capsys.readouterr().out
    *_, last = metrics.lives(begun.workdir)
    assert said.split()[0] in last["changes"]
    name = "seed" if "seed" in fields else next(iter(fields))
    values = fields[name] if name == "seed" else dataclasses.asdict(fields[name])
    assert last["options"][name] == json.loads(json.dumps(values))


def test_a_finished_run_says_that_it_was_made_otherwise(begun):
    with pytest.raises(UserError, match="with other options: seed 0 → 1"):
        go_on(begun, seed=1, train=SHORT)


def test_harmless_changes_are_said(begun, capsys):
    fields = {
        "train": dataclasses.replace(LONGER, log_every=2, samples=0),
        "checkpoint": CheckpointConfig(every=3),
        "mesh": MeshConfig(data=2),
        "init_from": "elsewhere",
    }
    capsys.readouterr()
    assert int(go_on(begun, **fields).step) == 6
    said = capsys.readouterr().out
    for words in (
        "train.steps 4 → 6",
        "train.log_every 1 → 2",
        "checkpoint.every 4 → 3",
        "mesh.data 1 → 2",
        "init_from nothing → elsewhere",
        "the learning rate follows the new train.steps from step 5 on.",
    ):
        assert words in said
    first, second = metrics.lives(begun.workdir)
    assert first["changes"] == {}
    assert first["options"]["train"]["steps"] == 4
    assert second["changes"]["train.steps"] == [4, 6]
    assert "train.steps: 4 → 6" in (Path(begun.workdir) / "report.html").read_text()


def test_nothing_is_said_where_nothing_differs(original, capsys):
    capsys.readouterr()
    go_on(original, train=SHORT)
    assert "differ" not in capsys.readouterr().out


def test_other_data_are_refused_or_begin_their_epoch_again(begun, capsys, monkeypatch):
    with pytest.raises(UserError, match=r"the data's rows \w{16} → \w{16}; give those again"):
        go_on(begun, rows={"distinct": 3})
    seen, batches = [], tiny.Rows.batches

    def watched(self, position):
        seen.append(position)
        return batches(self, position)

    monkeypatch.setattr(tiny.Rows, "batches", watched)
    go_on(begun, with_changes=True, rows={"distinct": 3})
    assert seen == [Position()]
    assert "its epoch begins again" in capsys.readouterr().out


def test_where_data_lie_does_not_matter_if_they_are_the_same():
    before = experiment(
        "", data=DataConfig(batch=8, corpus="here", mixture=(("a", 1.0), ("b", 2.0)))
    )
    data = dataclasses.replace(before.data, corpus="there", mixture=(("x", 1.0), ("y", 2.0)))
    now = dataclasses.replace(before, data=data)
    changes = resume.differences(before, now)
    assert changes.keys() == {"data.corpus", "data.mixture.paths"}
    marks = {"corpus 1": "m", "corpus 2": "n"}
    assert resume.decisive_changes("decoder", changes, marks, marks) == {}
    assert resume.decisive_changes("decoder", changes, {}, marks) == changes
    swapped = dict(zip(marks, reversed(marks.values()), strict=True))
    assert len(resume.decisive_changes("decoder", changes, marks, swapped)) == 2
    heavier = dataclasses.replace(data, mixture=(("x", 1.0), ("y", 3.0)))
    changes = resume.differences(now, dataclasses.replace(now, data=heavier))
    assert resume.decisive_changes("decoder", changes, marks, marks) == {
        "data.mixture.weights": ([1.0, 2.0], [1.0, 3.0])
    }


def test_every_field_is_free_or_judged():
    """A name in the tables that no experiment has would guard nothing."""
    names = set(resume._flat(resume.to_dict(experiment(""))))
    sections = {name.partition(".")[0] for name in names}
    tables = (resume._FREE, resume._READ_ONCE, resume._KEEPS_PLACE)
    for table in (*tables, *resume._EACH_STEP.values(), *resume._UNREAD.values()):
        assert table <= names | sections


def test_what_only_generation_reads_decides_no_step():
    changes = {"model.weights": ("", "int8"), "model.cache": ("", "int8"), "decode.top_k": (0, 8)}
    assert resume.decisive_changes("decoder", changes, {}, {}) == {}
    quantised = {"model.quantised": ("", "int8")}
    assert resume.decisive_changes("decoder", quantised, {}, {}) == quantised


def test_a_new_field_of_data_is_judged_on_purpose():
    """What decides the records is compared by their fingerprints, wherever they come from."""
    names = {name for name in resume._flat(resume.to_dict(experiment(""))) if name[:5] == "data."}
    assert names - resume._FREE - resume._READ_ONCE == {
        *("data.batch", "data.mixture.weights", "data.resample", "data.online", "data.rows")
    }


def test_splits_decide_by_the_records_that_they_give():
    changes = {"data.splits": ((), ((".", "train"),)), "data.hold_back": ("pictures", "subjects")}
    for name in resume._UNREAD:
        assert resume.decisive_changes(name, changes, {}, {}) == changes
        assert resume.decisive_changes(name, changes, {"records": "a"}, {"records": "a"}) == {}
        found = resume.decisive_changes(name, changes, {"records": "a"}, {"records": "b"})
        assert found == {"the data's records": ("a", "b")}


def test_other_records_of_validation_are_said_and_refuse_nothing(tmp_path, capsys):
    watched = {"log_every": 1, "validate_every": 2, "validation_batches": 1}
    config = experiment(tmp_path, train=TrainConfig(steps=2, **watched))
    train(learner(config))
    again = learner(dataclasses.replace(config, train=TrainConfig(steps=4, **watched)))
    again.streams["validation"] = tiny.Rows(8, config.model.context, distinct=3)
    capsys.readouterr()
    train(again)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"differ from before: .*the data's validation rows \w{16} → \w{16}", said)
    lives = [json.loads(line) for line in (tmp_path / "lives.jsonl").read_text().splitlines()]
    changed = [life["changes"].keys() for life in lives]
    assert changed == [set(), {"train.steps", "the data's validation rows"}]
    steps = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [1, 2, 3, 4]


READ_BY = {
    "seed": "decoder parti vqgan clip text_tokenizer",
    "vocab.text_pieces": "decoder parti text_tokenizer",
    "vocab.specials": "decoder parti",
    "tokenizers.algorithm": "text_tokenizer",
    "tokenizers.text": "decoder parti clip",
    "cm3.wrong_documents": "decoder",
    "model.layers": "decoder parti",
    "parti.drop_captions": "parti",
    "vqgan.codes": "vqgan",
    "vqgan_loss.pixels": "vqgan",
    "clip.text_layers": "clip",
    "optim.peak_lr": "decoder parti vqgan clip",
    "retrieval.documents": "decoder",
    "retrieval.query_dropout": "decoder clip",
    "curriculum.starts": "decoder parti vqgan clip",
    "data.records": "decoder parti vqgan clip text_tokenizer",
    "data.corpus": "decoder parti",
    "data.mixture.weights": "decoder",
    "data.batch": "decoder parti vqgan clip",
}
"""What decides what which learner learns, where no fingerprint of its data is known."""


@pytest.mark.parametrize("name", READ_BY)
def test_only_what_a_learner_reads_decides(name):
    changes = {name: (1, 2)}
    learners = [one for one in resume._UNREAD if resume.decisive_changes(one, changes, {}, {})]
    assert " ".join(learners) == READ_BY[name]


def test_clip_drops_pieces_of_its_queries_in_every_step():
    """No fingerprint of its records says how many; a decoder's are dropped when it is prepared."""
    changes, marks = {"retrieval.query_dropout": (0.2, 0.9)}, {"records": "m"}
    assert resume.decisive_changes("clip", changes, marks, marks) == changes
    assert resume.decisive_changes("decoder", changes, marks, marks) == {}


def test_other_records_are_told_by_what_differs():
    before = RecordStream({"x": np.arange(5), "y": np.zeros(5)}, batch=2, seed=0).fingerprints
    now = RecordStream({"x": np.arange(6), "y": np.zeros(6)}, batch=2, seed=0).fingerprints
    assert {"records", "records' number", "records' x", "records' y"} == before.keys()
    changes = resume.decisive_changes("vqgan", {}, before, now)
    assert "the data's records' number 5 → 6, " in resume.describe(changes)
    other = RecordStream({"x": np.arange(5), "y": np.ones(5)}, batch=2, seed=0).fingerprints
    changes = resume.decisive_changes("vqgan", {}, before, other)
    assert changes.keys() == {"the data's records' y"}
    # An earlier version knew the whole only.
    earlier = {"records": before["records"]}
    assert resume.decisive_changes("vqgan", {}, earlier, before) == {}
    changes = resume.decisive_changes("vqgan", {}, earlier, other)
    assert changes == {"the data's records": (before["records"], other["records"])}


@pytest.mark.parametrize(
    ("position", "corpora", "again"),
    [
        (Position(3, 2, 7), 0, Position(3)),
        (Position(3, 2, 7), 1, Position(3)),
        (Position(row=9, parts=(Position(1, 1, 1), Position(4, 0, 2))), 2, "parts"),
        (Position(row=9, parts=(Position(1, 1, 1), Position(4, 0, 2))), 3, Position()),
        (Position(3, 2, 7), 2, Position()),
    ],
)
def test_an_epoch_begins_again(position, corpora, again):
    if again == "parts":
        again = Position(row=9, parts=(Position(1), Position(4)))
    assert resume._epoch_again(position, corpora) == again


def test_an_epoch_of_a_curriculum_begins_again():
    """Whether the run had another one before or none, and whether it has one from now on."""
    plain, staged = Position(3, 2, 7), Position(row=50, parts=(Position(3, 2, 7),))
    for before in (plain, staged):
        assert resume._epoch_again(before, 0) == Position(3)
        assert resume._epoch_again(before, 0, 50) == Position(row=50, parts=(Position(3),))
    mixed = Position(row=400, parts=(Position(1, 1, 1), Position(4)))
    again = Position(row=400, parts=(Position(1), Position(4)))
    for before in (mixed, Position(row=50, parts=(mixed,))):
        assert resume._epoch_again(before, 2) == again
        assert resume._epoch_again(before, 2, 50) == Position(row=50, parts=(again,))


def test_a_position_beyond_the_records_raises_user_error():
    stream = RecordStream({"x": np.arange(5)}, batch=2, seed=0)
    for position in (Position(1, 0, 5), Position(0, 1, 0), Position(0, 0, 1, (Position(),))):
        with pytest.raises(UserError, match=r"goes on at row .* not those that it was trained on"):
            next(stream.batches(position))
    assert next(stream.batches(Position(1, 0, 4))).next == Position(2, 0, 1)


def test_a_checkpoint_of_an_earlier_version_goes_on(begun, monkeypatch):
    """It knows no fingerprints of its data."""
    from cm3jax.checkpoint import Meta

    read = Meta.from_json
    old = lambda values, what: read({k: v for k, v in values.items() if k != "data"}, what)  # noqa: E731
    monkeypatch.setattr(Meta, "from_json", old)
    assert int(go_on(begun).step) == 6
    with pytest.raises(UserError, match=r"data\.corpus nothing → other"):
        go_on(begun, data=dataclasses.replace(begun.data, corpus="other"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("params.safetensors", "weights", "holds exported weights"),
        (
            "config.json",
            '{"title": "a thesis"}',
            "does not belong to a run of this program and stays",
        ),
        ("config.json", "not JSON", "does not belong to a run"),
        ("metrics.jsonl", '{"step": 7, "loss": 1.5}\n', "metrics.jsonl does not belong"),
        ("lives.jsonl", "mine", "lives.jsonl does not belong"),
        ("report.html", "<p>mine", "report.html does not belong"),
    ],
)
def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        train(learner(experiment(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_folder_with_checkpoints_of_another_program_stays_as_it_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name, content in (("config.json", '{"title": "a thesis"}'), ("checkpoints/last.pt", "x")):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"config\.json does not belong to a run"):
        train(learner(experiment(tmp_path)))
    assert (tmp_path / "config.json").read_text() == '{"title": "a thesis"}'
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_what_killed_lives_left_is_swept_and_nothing_else(begun):
    folder = Path(begun.workdir)
    gone = (
        *(
            ".report.html.0123abcd.part",
            ".metrics.jsonl.0123abcd.part",
            "samples/4/.a.png.0123abcd.part",
        ),
        "profile/.operations.json.0123abcd.part",
        "profile/plugins/profile/steps-2-3/.process-0.xplane.pb.0123abcd.part",
    )
    kept = (
        *(".report.html.part", ".heldout.json.0123abcd.part", "samples/.a.png.0123abcd.part"),
        *("thesis/.report.html.0123abcd.part", "samples/4/a.png"),
    )
    for name in (*gone, *kept):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("half")
    for steps in (SHORT, LONGER):  # finished already, and going on
        go_on(begun, train=steps)
        assert not [name for name in gone if (folder / name).exists()]
        assert all((folder / name).exists() for name in kept)
        for name in gone:
            (folder / name).write_text("half")


def test_a_damaged_config_does_not_block_a_sound_checkpoint(begun):
    path = Path(begun.workdir) / "config.json"
    path.write_bytes(b"\xff{" + b"[" * 100_000)
    state = go_on(begun)
    assert int(state.step) == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert json.loads(path.read_text())["train"]["steps"] == 6
