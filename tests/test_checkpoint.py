"""Saving, restoring on other meshes, damage, and runs for use."""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cm3jax import checkpoint, partition
from cm3jax.checkpoint import Checkpoints, Meta, export_run, load_run
from cm3jax.config import CheckpointConfig, MeshConfig
from cm3jax.data.pipeline import Position
from cm3jax.errors import UserError
from cm3jax.io import checksums
from cm3jax.io.experiment_json import save_experiment
from cm3jax.training import exported_run
from cm3jax.training.state import plan_layout
from tests.tiny import experiment, learner

PRINTS = {"vocab": "abc"}
PLACE = Position(1, 2, 3, (Position(4), Position(5)))
META = Meta(PLACE, experiment(""), PRINTS, seconds=4.5, licences={"CC0-1.0": 0.75, "MIT": 0.25})


def layout(mesh=(1, 1, 1), **fields):
    config = experiment("", **fields)
    return plan_layout(learner(config), partition.make_mesh(MeshConfig(*mesh)))


@pytest.fixture(scope="module")
def state():
    return layout().init(jax.random.key(1))


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def save(run_dir, state, *steps, keep=2):
    with Checkpoints(run_dir, CheckpointConfig(keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)), META)


def restore(run_dir, **fields):
    with Checkpoints(run_dir, CheckpointConfig()) as checkpoints:
        return checkpoints.restore(layout(**fields).abstract, PRINTS)


def test_round_trip_on_another_mesh(tmp_path, state):
    save(tmp_path, state, 5, 10, 15)
    restored = restore(tmp_path, mesh=(2, 2, 2))
    assert restored.meta == META
    equal(restored.state, dataclasses.replace(state, step=jnp.int32(15)))
    assert not restored.state.params["embedding"].sharding.is_fully_replicated
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"10", "15"}


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None


def test_saving_survives_donation(tmp_path, state):
    """The background write must not see what the next step does to the same buffers."""
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    copy = jax.tree.map(jnp.copy, state)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, copy, META)
        jax.block_until_ready(spoil(copy))
    equal(restore(tmp_path).state, state)


def test_a_half_written_checkpoint_is_passed_over(tmp_path, state, caplog):
    save(tmp_path, state, 5)
    half = tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "cm3jax"):
        assert int(restore(tmp_path).state.step) == 5
    assert str(half) in caplog.text
    assert not half.exists()


@pytest.fixture(scope="module")
def two(tmp_path_factory, state):
    """A run directory with checkpoints at steps 5 and 10."""
    path = tmp_path_factory.mktemp("two")
    save(path, state, 5, 10)
    return path


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_damage_to_any_file_is_found(tmp_path, two, damage):
    """But to the two notes that orbax writes last, which nothing reads."""
    notes = {"_CHECKPOINT_METADATA", "commit_success.txt"}
    sound = two / "checkpoints" / "10"
    files = [path.relative_to(sound) for path in sound.rglob("*") if path.is_file()]
    assert len(files) > 6
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(sound, copy)
        damage(copy / file)
        fault = checksums.fault(copy)
        if str(file) in notes:
            assert fault is None
        else:  # a flipped bit of the list itself may change the checksum of any file
            assert file.name in fault or file.name == checksums.MANIFEST


@pytest.mark.parametrize(
    "victim", ["meta/metadata", "state/_METADATA", "checksums.json", "state/ocdbt.process_0/d"]
)
def test_a_damaged_checkpoint_is_set_aside(tmp_path, two, state, caplog, victim):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "10" / victim
    flip(next(path.iterdir()) if path.is_dir() else path)
    with caplog.at_level(logging.WARNING, "cm3jax"):
        assert load_run(tmp_path).step == 5
        assert int(restore(tmp_path).state.step) == 5
    assert f"passing over {tmp_path}/checkpoints/10, which is damaged: " in caplog.text
    assert path.name in caplog.text or path.name == checksums.MANIFEST
    assert (tmp_path / "checkpoints" / "damaged-10").exists()
    save(tmp_path, state, 10)  # its place is free again
    assert int(restore(tmp_path).state.step) == 10
    before = checksums.file_entry(
        next((tmp_path / "checkpoints" / "damaged-10").rglob("_METADATA"))
    )
    flip(path if path.is_file() else next(path.iterdir()))
    assert int(restore(tmp_path).state.step) == 5
    assert (tmp_path / "checkpoints" / "damaged-10.2").exists()
    again = checksums.file_entry(next((tmp_path / "checkpoints" / "damaged-10").rglob("_METADATA")))
    assert again == before, "what an earlier life set aside stays"


@pytest.mark.parametrize("content", ["3", "null", '["x"]', '{"state/_METADATA": 3}', '{"x": {}}'])
def test_a_damaged_list_of_checksums_is_a_fault(tmp_path, two, content):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "10" / checksums.MANIFEST).write_text(content)
    assert load_run(tmp_path).step == 5


def test_damaged_notes_of_orbax_do_no_harm(tmp_path, two):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.rglob("_CHECKPOINT_METADATA"):
        file.write_text("{")
    assert int(restore(tmp_path).state.step) == 10


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_again(tmp_path, two):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for step in ("5", "10"):
        truncate(tmp_path / "checkpoints" / step / "meta" / "metadata")
    for read in (restore, load_run, restore):
        with pytest.raises(UserError, match=r"all checkpoints in .* are damaged \(10, 5\)"):
            read(tmp_path)


def test_another_model_is_refused(tmp_path, state):
    save(tmp_path, state, 5)
    wider = dataclasses.replace(experiment("").model, ffn=128)
    with pytest.raises(UserError, match=r"params/.*/down/kernel is float32\[2, 64"):
        restore(tmp_path, model=wider)
    assert int(restore(tmp_path).state.step) == 5  # and left as it was


def test_another_type_is_refused_not_cast(tmp_path, state):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
    save(tmp_path, dataclasses.replace(state, params=half), 5)
    with pytest.raises(UserError, match="params/embedding is bfloat16"):
        restore(tmp_path)


def test_another_vocabulary_is_refused(tmp_path, state):
    save(tmp_path, state, 5)
    with (
        Checkpoints(tmp_path, CheckpointConfig()) as checkpoints,
        pytest.raises(UserError, match="was made with the vocabulary abc, but this run has xyz"),
    ):
        checkpoints.restore(layout().abstract, {"vocab": "xyz"})


def test_exported_weights_have_a_checksum(tmp_path, state):
    save(tmp_path / "run", state, 5)
    export_run(tmp_path / "run", tmp_path / "out", "bfloat16")
    file = tmp_path / "out" / "params.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"params\.safetensors is damaged \(its checksum differs\)"):
        load_run(tmp_path / "out")
    for name, value in ((b"fingerprints", b"[1, 2, 3]"), (b"licences", b"[]")):
        there = bytes(content)
        at = there.index(b'"' + name + b'": "') + len(name) + 5
        end = there.index(b'", "', at)
        filled = value + b" " * (end - at - len(value))
        file.write_bytes(there[:at] + filled + there[end:])
        with pytest.raises(UserError, match="is damaged or not an exported run; export it again"):
            load_run(tmp_path / "out")
    # Weights of earlier versions have none.
    file.write_bytes(bytes(content).replace(b'"sha256"', b'"sha_of"'))
    assert load_run(tmp_path / "out").step == 5


def test_halves_of_exports_that_were_killed_go_with_the_next(tmp_path, state):
    save(tmp_path / "run", state, 5)
    out = tmp_path / "out"
    out.mkdir()
    gone = (".params.safetensors.4711.part", ".config.json.0123abcd.part")
    kept = ("thesis", ".params.safetensors.part", ".thesis.0123abcd.part")
    for name in (*gone, *kept):
        (out / name).write_text("half")
    export_run(tmp_path / "run", out)
    left = {path.name for path in out.iterdir()}
    assert left == {"params.safetensors", "config.json", *kept}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert load_run(out).step == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_run_loads_like_the_run(tmp_path, state, dtype):
    book = {"codebook": {"table": jnp.ones((2, 3)), "uses": jnp.arange(2)}}
    save(tmp_path / "run", dataclasses.replace(state, extra=book), 5)
    export_run(tmp_path / "run", tmp_path / "out", dtype)
    ours, theirs = load_run(tmp_path / "out"), load_run(tmp_path / "run")
    assert (ours.step, ours.fingerprints) == (5, PRINTS) == (theirs.step, theirs.fingerprints)
    assert ours.licences == theirs.licences == META.licences
    assert ours.experiment == theirs.experiment
    if dtype == "float32":
        equal(ours.variables, theirs.variables)
    else:
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), theirs.variables)
        equal(ours.variables, rounded)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "params.safetensors",
    }


def test_an_export_takes_the_text_tokenizer_along(tmp_path, state):
    save(tmp_path, state, 5)
    (tmp_path / "text.model").write_bytes(b"pieces")
    export_run(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "text.model").read_bytes() == b"pieces"


def test_an_export_over_an_older_one_is_killed_and_is_one_of_both(tmp_path, state, monkeypatch):
    """Between the weights and their config, above all."""
    save(tmp_path / "old", state, 5)
    other = dataclasses.replace(META, experiment=experiment(tmp_path, seed=7))
    with Checkpoints(tmp_path / "new", CheckpointConfig()) as checkpoints:
        checkpoints.save(6, state, other)
    export_run(tmp_path / "old", tmp_path / "out")
    replaced, count = type(epath.Path(tmp_path)).replace, 0

    def killed(source, target):
        nonlocal count
        count += 1
        if count == 4:  # both are written, and the first is in its place
            raise KeyboardInterrupt
        return replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            export_run(tmp_path / "new", tmp_path / "out")
    found = load_run(tmp_path / "out")
    assert (found.step, found.experiment.seed) == (6, 7)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "params.safetensors",
    }


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": '{"model_type": "chameleon"}'}, "does not belong to a run of this"),
        ({"params.safetensors": "a thesis"}, "is no export of this program"),
        ({"config.json": "{", "params.safetensors": ""}, "does not belong to a run of this"),
    ],
)
def test_an_export_replaces_nothing_of_somebody_else(tmp_path, state, files, said):
    save(tmp_path / "run", state, 5)
    (tmp_path / "out").mkdir()
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(UserError, match=said):
        export_run(tmp_path / "run", tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == files


def test_an_export_in_a_bucket_is_replaced(monkeypatch):
    """Where `os.path` finds neither files nor folders."""
    out = epath.Path("gs://bucket/run")
    there = {out / "config.json", out / "params.safetensors"}
    monkeypatch.setattr(type(out), "exists", lambda path: path in there)
    monkeypatch.setattr(exported_run, "is_run_config", lambda path: True)
    exported_run._require_replaceable(out)


def test_a_run_is_not_exported_onto_itself(tmp_path, state):
    save(tmp_path / "run", state, 5)
    save_experiment(tmp_path / "run" / "config.json", META.experiment)
    with pytest.raises(UserError, match="is the folder of a training; give another folder"):
        export_run(tmp_path / "run", tmp_path / "run")
    assert load_run(tmp_path / "run").step == 5


def test_an_export_names_no_path_of_this_machine(tmp_path, state):
    meta = dataclasses.replace(META, experiment=experiment(tmp_path, init_from=str(tmp_path)))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state, meta)
    export_run(tmp_path, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no trained run"):
        load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load_run(tmp_path)


def test_a_truncated_export_is_refused(tmp_path, state):
    save(tmp_path, state, 5)
    export_run(tmp_path, tmp_path / "out")
    file = tmp_path / "out" / "params.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"params\.safetensors is damaged"):
        load_run(tmp_path / "out")


@pytest.mark.parametrize("exported", [False, True])
def test_a_run_is_read_onto_a_mesh(tmp_path, state, exported):
    save(tmp_path / "run", state, 5)
    export_run(tmp_path / "run", tmp_path / "out")
    path = tmp_path / ("out" if exported else "run")
    abstract = layout(mesh=(1, 2, 2)).abstract
    loaded = load_run(path, lambda _: abstract).variables
    equal(loaded["params"], state.params)
    lies = {str(leaf.sharding) for leaf in jax.tree.leaves(loaded)}
    assert lies == {str(leaf.sharding) for leaf in jax.tree.leaves(abstract.params)}
    assert len(lies) > 1
    more = dataclasses.replace(abstract, params=abstract.params | {"new": abstract.step})
    with pytest.raises(UserError, match="is of another model: params/new is nothing there"):
        load_run(path, lambda _: more)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "checksums.json"),
        ValueError('Error writing "x": Failed [OS error 28: No space left on device]'),
        ValueError(
            'RESOURCE_EXHAUSTED: Error writing local file "a": Failed to write 8 bytes to file 13: '
            "No space left on device [os_error_code='28'] [tensorstore_spec='{}']"
        ),
    ],
)
def test_what_the_system_says_of_a_save_is_said_briefly(error):
    """tensorstore says it in one way or another, behind all that it was doing."""
    assert checkpoint._brief(error) == "No space left on device"


def test_meta_is_json():
    assert Meta.from_json(json.loads(json.dumps(META.to_json())), "x") == META
