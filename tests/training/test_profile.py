"""Traces of steps: what lies in the folder, and the time by operation."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import TrainConfig
from cm3jax.errors import UserError
from cm3jax.train import train
from cm3jax.training.profile import OperationSums, StepProfile, kind_of, read_operations
from tests.tiny import experiment, learner


def test_a_run_keeps_a_trace_and_its_report_tells_the_time_by_operation(tmp_path):
    steps = TrainConfig(steps=4, log_every=4, validate_every=0, profile="3:4")
    train(learner(experiment(tmp_path, train=steps)))
    folder = tmp_path / "profile" / "plugins" / "profile" / "steps-3-4"
    names = {path.name for path in folder.iterdir()}
    assert names == {"process-0.xplane.pb", "process-0.trace.json.gz"}
    # What Perfetto opens: events of the trace event format, the annotated steps among them.
    events = json.loads(gzip.decompress((folder / "process-0.trace.json.gz").read_bytes()))
    steps = {event["args"]["step_num"] for event in events["traceEvents"] if is_step(event)}
    assert steps == {"3", "4"}
    found = read_operations(tmp_path)
    sums = OperationSums(parts=2)
    sums.add(folder / "process-0.xplane.pb")
    assert found == sums.operations()
    assert sum(each.share for each in found) == pytest.approx(1)
    milliseconds = [each.milliseconds for each in found]
    assert milliseconds == sorted(milliseconds, reverse=True)
    page = (tmp_path / "report.html").read_text()
    assert "Time by operation" in page
    assert f"<td>{found[0].name}</td>" in page


def test_time_between_steps_does_not_count(tmp_path):
    """A validation sorts, and its sorts are in no trace."""
    step, validation = jax.jit(lambda x: x @ x), jax.jit(lambda x: jnp.sort(x, axis=0))
    matrix = jnp.ones((256, 256))
    for function in (step, validation):
        function(matrix)
    with StepProfile(tmp_path, range(2, 6)) as profile:
        for number in range(1, 8):
            profile.run(number, step, matrix)
            if number in (1, 3):
                profile.pause()
                jax.block_until_ready(validation(matrix))
    found = read_operations(tmp_path)
    assert not [each for each in found if "sort" in each.name]
    # Per step, over both traces; CPUs may note parts that threads share besides.
    assert sum(each.count for each in found) >= 1
    folders = tmp_path / "profile" / "plugins" / "profile"
    assert {path.name for path in folders.iterdir()} == {"steps-2-3", "steps-4-5"}
    both = OperationSums(parts=4)
    for path in sorted(folders.glob("*/*.pb")):
        both.add(path)
    assert both.operations() == found


@pytest.mark.slow  # another traced run; one is read by operation here
def test_a_validation_between_traced_steps_is_not_counted(tmp_path):
    steps = TrainConfig(steps=5, log_every=5, validate_every=3, validation_batches=3, profile="2:4")
    train(learner(experiment(tmp_path, train=steps)))
    folders = tmp_path / "profile" / "plugins" / "profile"
    assert {path.name for path in folders.iterdir()} == {"steps-2-3", "steps-4-4"}
    for path in folders.glob("*/*.json.gz"):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert any(map(is_step, events))
        told = json.dumps(events)
        assert "(step)" in told or "jit_step" in told
        assert "(measure)" not in told
        assert "jit_measure" not in told
    assert "Time by operation" in (tmp_path / "report.html").read_text()


def is_step(event) -> bool:
    return event.get("name") == "train" and "step_num" in event.get("args", {})


def test_operations_are_counted_per_step_and_device(tmp_path):
    matrix = jnp.ones((256, 256))
    sums = jax.jit(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: jnp.sort(y @ x, axis=0), x))
    sums(matrix)
    with StepProfile(tmp_path, range(2, 4)) as profile:
        for number in range(1, 6):
            profile.run(number, sums, matrix)
    by_name = {each.name: each for each in read_operations(tmp_path)}
    (sort,) = (each for name, each in by_name.items() if "sort" in name)
    # Five to a step; CPUs may note the copy that is sorted, and parts that threads share, besides.
    assert sort.count >= 5
    assert 0 < sort.milliseconds < 1000
    assert not by_name.keys() & {"while", "call"}


def test_a_trace_that_the_run_ends_early_is_kept(tmp_path):
    step = jax.jit(lambda x: jnp.sort(x))
    with StepProfile(tmp_path, range(1, 100)) as profile:
        profile.run(1, step, np.arange(1000.0))
    assert read_operations(tmp_path)
    with StepProfile(tmp_path / "none", range(5, 7)) as profile:
        profile.run(1, step, np.arange(1000.0))
    assert not (tmp_path / "none").exists()
    assert read_operations(tmp_path / "none") == []


def test_a_step_that_fails_is_what_is_told(tmp_path):
    """Not a trace without steps, nor a state that the step took over."""
    step = jax.jit(lambda x: jnp.sort(x), donate_argnums=0)

    def fails(x):
        step(x)
        raise ValueError("no memory")

    def run(first):
        with StepProfile(tmp_path, range(first, 4)) as profile:
            profile.run(2, fails, profile.run(1, step, jnp.ones(1000)))

    with pytest.raises(ValueError, match="no memory"):
        run(2)
    assert not (tmp_path / "profile").exists()
    with pytest.raises(ValueError, match="no memory"):
        run(1)
    (folder,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    assert folder.name == "steps-1-1"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("%fusion.12.clone = (f32[8,4]{1,0}, f32[]) fusion(%a, %b), kind=kLoop", "fusion"),
        ("dot.3", "dot"),
        ("transpose_copy_fusion.1.remat2", "transpose_copy_fusion"),
        ("all-gather-start.7", "all-gather-start"),
        ("loop_add_fusion", "loop_add_fusion"),
    ],
)
def test_numbers_are_no_part_of_a_kind(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("content", ['{"name": "dot"}', '[{"name": "dot"}]', '[{"x": 1}]', "[3]"])
def test_damaged_times_raise_user_error(tmp_path, content):
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "operations.json").write_text(content)
    with pytest.raises(UserError, match=r"operations\.json"):
        read_operations(tmp_path)


@pytest.mark.parametrize("steps", ["20", "0:3", "5:4", "a:b", "1:2:3", "-1:4", "1:", "²:3"])
def test_malformed_ranges_of_steps_are_refused(steps):
    with pytest.raises(UserError, match=r"train\.profile=.* must be two steps such as 20:25"):
        TrainConfig(profile=steps)
    assert TrainConfig(profile="20:25").traced == range(20, 26)
