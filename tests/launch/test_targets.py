"""Training steps compiled for TPUs and GPUs that are not here, at reduced width.

In processes without the flags of this suite, which are for CPUs. CI installs the compilers and runs
this file; without them each test says what it needs.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from launch import plan

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--model.width", "512", "--model.heads", "4", "--model.head-width", "128"),
    *("--model.ffn", "2048", "--model.context", "512", "--model.layers", "4"),
    *("--data.batch", "16", "--mesh.data", "1", "--mesh.fsdp", "4"),
)


def there(package: str):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None and not os.environ.get("CM3JAX_TARGETS"),
        reason=f"needs {package}; .ci/run installs it",
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
    assert found["peak_bytes"] == pytest.approx(747_516_928, rel=0.1)
    assert found["kernels"] == ["tpu_custom_call"]
    # Gathers of a layer's parameters and sums of its gradients are windowed permutes. What waits
    # are the vocabulary's: gathers, and sums that are scattered; none is a whole all-reduce.
    assert found["collectives"]["collective-permute"]["hidden"] >= 240
    most = {"collective-permute": 4, "all-gather": 6, "all-to-all": 2, "reduce-scatter": 3}
    assert {kind: waiting(found, kind) for kind in found["collectives"]} == most


@pytest.mark.slow
@there("jax_cuda13_plugin")
def test_a_step_for_gpus_hides_its_communication():
    found = compiled("--target", "h200-4", "--model.attention", "cudnn")
    assert found["fits"]
    assert any("cudnn" in kernel for kernel in found["kernels"])


def test_slices_and_search_want_a_target():
    for words in (("--slices", "2"), ("--search",), ("--decode",)):
        with pytest.raises(UserError, match="go with --target, as in --target v6e-256"):
            plan.run(["cm3leon_350m", *words])
    with pytest.raises(UserError, match="--target v6-8 is none of v5e, v6e"):
        plan.run(["cm3leon_350m", "--target", "v6-8"])
