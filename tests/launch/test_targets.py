"""Training steps compiled for TPUs and GPUs that are not here, at reduced width.

In processes without the flags of this suite, which are for CPUs. CI installs the compilers and runs
this file; without them each test says what it needs.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cm3jax.compiled import Bounds, Compiled
from cm3jax.config import MeshConfig
from cm3jax.errors import UserError
from cm3jax.presets import load_experiment
from cm3jax.targets import Target
from launch import plan, plan_target
from launch.bench import command
from launch.bench import targets as bench_targets

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--model.width", "512", "--model.heads", "4", "--model.head-width", "128"),
    *("--model.ffn", "2048", "--model.context", "512", "--model.layers", "4"),
    *("--data.batch", "16", "--mesh.data", "1", "--mesh.fsdp", "4"),
)


def there(package: str):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None and not os.environ.get("CM3JAX_TARGETS"),
        reason=f"needs {package}, of the extra tpu or cuda",
    )


def compiled(*words: str) -> dict:
    """What `launch.plan --target` says of the smallest of the papers' models, made smaller yet."""
    mine = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_NUM_CPU_DEVICES")
    environment = {k: v for k, v in os.environ.items() if k not in mine}
    command = [sys.executable, "-m", "launch.plan", "cm3leon_350m", *SMALL, *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["target"]


def waiting(found: dict, kind: str) -> int:
    return found["collectives"][kind]["waiting"]


@pytest.mark.slow
@there("libtpu")
def test_a_step_for_tpus_hides_its_communication():
    found = compiled("--target", "v5e-4", "--model.attention", "splash")
    assert found["fits"]
    assert found["peak_bytes"] == pytest.approx(630_100_992, rel=0.1)
    assert found["kernels"] == ["tpu_custom_call"]
    # Gathers of a layer's parameters and sums of its gradients are windowed permutes, and the
    # vocabulary's table is gathered beside the layers, once for all pieces of the loss. What waits
    # is the one sum of its gradient, which is scattered, and small gathers.
    assert found["collectives"]["collective-permute"]["hidden"] >= 480
    assert found["collectives"]["all-gather"]["hidden"] == 1
    most = {"collective-permute": 8, "all-gather": 4, "all-to-all": 2, "reduce-scatter": 1}
    assert {kind: waiting(found, kind) for kind in found["collectives"]} == most


@pytest.mark.slow
@there("libtpu")
@pytest.mark.parametrize(
    ("target", "sums"),
    # Beside what waits with `fsdp` by itself: one sum over `data` of a layer's gradients, each
    # device's part of them. Over the slices' network they are no collectives of XLA's.
    [
        (("v5e-8",), {"all-reduce": 7, "reduce-scatter": 1}),
        (("v5e-4", "--slices", "2"), {"all-reduce": 1, "reduce-scatter": 2}),
    ],
    ids=("one slice", "two slices"),
)
def test_a_step_for_tpus_hides_its_communication_under_data_and_fsdp(target, sums):
    """As with `fsdp` by itself: gathers of a layer's parameters and sums of its gradients over
    `fsdp` are permutes between parts of products. Without flags for it they were whole gathers,
    and sums over all of `fsdp` at the end of each layer."""
    mesh = ("--mesh.data", "2", "--data.batch", "32")
    found = compiled("--target", *target, *mesh, "--model.attention", "splash")
    assert found["fits"]
    assert found["collectives"]["collective-permute"]["hidden"] >= 480
    assert found["collectives"]["all-gather"]["hidden"] == 1
    most = {"collective-permute": 8, "all-gather": 4, "all-to-all": 4, **sums}
    assert {kind: waiting(found, kind) for kind in found["collectives"]} == most


@pytest.mark.slow
@there("jax_cuda13_plugin")
def test_a_step_for_gpus_hides_its_communication():
    found = compiled("--target", "h200-4", "--model.attention", "cudnn")
    assert found["fits"]
    assert found["peak_bytes"] == pytest.approx(963_764_580, rel=0.1)
    assert found["kernels"] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    waits = {kind: waiting(found, kind) for kind in found["collectives"]}
    assert waits == {"all-gather": 1, "all-to-all": 0, "reduce-scatter": 0}


@pytest.mark.slow
@there("libtpu")
def test_a_chunk_of_drawing_copies_nothing_on_tpus():
    wide = ("--model.width", "1024", "--model.heads", "8", "--model.context", "4096")
    found = compiled("--target", "v5e-1", "--decode", "--mesh.fsdp", "1", *wide)
    assert found["fits"]
    assert found["collectives"] == {}
    # Weights and a cache of two streams in bfloat16.
    assert found["bytes_read_per_step"] == pytest.approx(372_244_480, rel=0.1)
    # So small a model's matrices and cache stay in fast memory for the most part.
    assert found["bytes_read_compiled"] == pytest.approx(138_690_560, rel=0.1)
    assert found["peak_bytes"] == pytest.approx(524_388_352, rel=0.1)
    assert not found["copies"]


def made(experiment, target, peak: float, hidden=0.0, waiting=0.0, width=None, **mesh):
    """What would be said of a step with these figures."""
    config = load_experiment(experiment)
    model = dataclasses.replace(config.model, width=width or config.model.width)
    config = dataclasses.replace(config, mesh=MeshConfig(**mesh), model=model)
    target = Target.parse(target)
    bounds = Bounds(1.0, hidden, waiting, 0.0)
    step = Compiled(int(peak * target.memory), 0, 1.0, {}, [], 1e15, bounds)
    return plan_target.advice(config, target, step)


def test_it_says_what_to_change():
    assert made("cm3leon_7b", "v5p-32", 0.9, hidden=0.9, data=1, fsdp=32) == []
    (said,) = made("cm3leon_760m", "v5p-8", 1.1, data=1, fsdp=8)
    assert said == "does not fit: try --model.remat full"
    (said,) = made("cm3leon_7b", "v5p-8", 1.1, data=1, fsdp=8)  # remat is full already
    assert "256 rows at once: try --optim.accumulate 2" in said
    (said,) = made("vqgan_256", "v5e-4", 1.1, data=4)
    assert re.search(r"a device has \d+ rows at once: try a smaller --data\.batch", said)
    (said,) = made("cm3leon_7b", "v5p-32", 0.5, hidden=1.2, data=1, fsdp=32)
    assert said.startswith("bound by communication: give each device more rows")
    waits, narrow = made("cm3leon_7b", "v6e-256", 0.5, waiting=1.0, data=1, fsdp=256)
    assert "for 50% of a step" in waits
    assert "leaves 16 of 4096 elements" in narrow
    assert narrow.endswith("try --mesh.data 8 --mesh.fsdp 32")
    # Copies of what 32 devices share do not fit there.
    _, narrow = made("cm3leon_7b", "v5e-256", 0.5, waiting=1.0, data=1, fsdp=256)
    assert narrow.endswith("try --mesh.fsdp 32 --mesh.tensor 8")
    # As many devices as before; 12 of them would divide the width, but fill no slice.
    _, narrow = made("cm3leon_760m", "v6e-16", 0.5, waiting=1.0, data=1, fsdp=16)
    assert narrow.endswith("try --mesh.fsdp 8 --mesh.tensor 2")
    # No mesh helps a model that is narrow itself, and a tokenizer's has other axes.
    (_,) = made("cm3leon_760m", "v6e-16", 0.5, waiting=1.0, width=64, data=1, fsdp=16)
    (_,) = made("vqgan_256", "v5e-8", 0.5, waiting=1.0, data=1, fsdp=8)
    (said,) = made("cm3leon_7b", "h200-64", 0.5, data=1, fsdp=4, tensor=16)
    assert "crosses the network between hosts of 8 GPUs at every layer: make it 8 or less" in said


def test_the_highest_utilisation_is_of_the_shortest_step():
    target = Target.parse("v5e-4")
    bounds = Bounds(arithmetic=2.0, hidden=3.0, waiting=0.5, network=0.5)
    assert bounds.step == 4.0
    step = Compiled(0, 0, 1.0, {}, [], 2.0 * 4 * 197e12, bounds)
    assert step.mfu(target) == pytest.approx(0.5)


def test_the_table_has_a_line_for_each_case_and_says_why_one_is_empty():
    known = json.loads((ROOT / "docs/targets.json").read_text())
    text = bench_targets.page({**known, bench_targets.CASES[-1]: {"error": "it is late"}})
    assert "| it is late |" in text
    assert text.count("\n| ") == len(bench_targets.CASES) + 1
    assert bench_targets.page(known) == (ROOT / "docs/targets.md").read_text()


def test_what_is_said_of_todays_programs_is_left_out_where_a_figure_is_open():
    known = json.loads((ROOT / "docs/targets.json").read_text())
    assert "48,089 of 48,518 overlap." in bench_targets.page(known)
    nothing = bench_targets.page({})
    assert "(open)" not in nothing
    assert "\n- **Several slices**: every mesh ended in a traceback.\n- **A whole copy" in nothing
    assert "`launch.plan parti`** was refused. Today it is planned.\n- **Ironwood" in nothing


def test_the_command_goes_on_from_what_was_compiled(tmp_path):
    kept, page = ROOT / "docs/targets.json", tmp_path / "targets.md"
    options = ["targets", "--only", "no such case", "--out", str(kept), "--page", str(page)]
    options = command.make_parser().parse_args(options)
    known = json.loads(kept.read_text())
    assert list(options.measure(options)) == [case for case in bench_targets.CASES if case in known]
    assert page.read_text() == (ROOT / "docs/targets.md").read_text()
    page.write_text("# My thesis\n")
    with pytest.raises(UserError, match="is another file, which the table would replace"):
        options.measure(options)
    assert page.read_text() == "# My thesis\n"


def test_search_passes_over_what_cannot_be_compiled(monkeypatch):
    experiment, target = load_experiment("cm3leon_350m"), Target.parse("h200-8")
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, batch=64)
    )
    tried = []

    def for_target(candidate, target):
        tried.append(candidate)
        if len(tried) < 3:
            raise UserError("does not fit")
        return {"peak_bytes": 1}

    monkeypatch.setattr(plan_target, "_formula", lambda candidate: 1)
    monkeypatch.setattr(plan_target, "for_target", for_target)
    found = list(plan_target.search(experiment, target))
    assert len(tried) == plan_target.TRIED == len(found) + 2
    assert found[-1]["options"] == plan_target.options_of(tried[-1])
    # On GPUs a narrow part costs nothing: the mesh that cuts products least comes first.
    assert {(each.mesh.tensor, each.mesh.fsdp) for each in tried} == {
        (1, 1),
        (1, 2),
        (1, 4),
        (1, 8),
    }
    tried.clear()
    monkeypatch.setattr(plan_target, "TRIED", 2)
    with pytest.raises(UserError, match="does not fit"):
        list(plan_target.search(experiment, target))


def test_options_that_do_nothing_together_are_refused():
    for words, said in {
        ("--compile", "--target", "v5e-8"): "--compile is for the devices that are here",
        ("--search", "--decode", "--target", "v5e-8"): "--search tries training steps",
        ("--documents", "2", "--target", "v5e-8"): "--samples go with --decode",
    }.items():
        with pytest.raises(UserError, match=said):
            plan.run(["cm3leon_350m", *words])


def test_a_plan_of_drawing_wants_a_window_that_emits_what_is_said():
    asked = ["cm3leon_350m", "--target", "v5e-8", "--decode"]
    with pytest.raises(UserError, match="give --decode a window"):
        plan.run([*asked, "--decode.speculate", "-1"])
    for words in (("--tokens-per-pass", "2"), ("--tokens-per-pass", "0.5")):
        with pytest.raises(UserError, match="from 1 to the ids that a pass reads"):
            plan.run([*asked, *words])
    with pytest.raises(UserError, match="--tokens-per-pass goes with --decode"):
        plan.run(["cm3leon_350m", "--target", "v5e-8", "--tokens-per-pass", "2"])


def test_slices_and_search_want_a_target():
    for words in (("--slices", "2"), ("--search",), ("--decode",)):
        with pytest.raises(UserError, match="need a --target, such as --target v6e-256"):
            plan.run(["cm3leon_350m", *words])
    with pytest.raises(UserError, match="--target v6-8 is none of v5e, v6e"):
        plan.run(["cm3leon_350m", "--target", "v6-8"])
